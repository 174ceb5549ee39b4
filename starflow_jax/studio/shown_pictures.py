"""Pictures, frames and maps of values as HTML in which they are embedded: no file is written or served."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from starflow_jax.core.html_page import escaped, html_picture, html_video
from starflow_jax.media import video_grid, write_gif, write_mp4
from starflow_jax.reports.pictures import png_or_jpeg

_SIDE = 128  # pixels of a shown picture, about
_LARGE = 256  # sides of a clip above this are shown as MP4 instead of GIF
_STRIP = 64  # frames of a strip, the newest ones
_MOST_PNG_BYTES = 200_000  # larger ones are embedded as JPEG


def picture(pixels: np.ndarray, text: str, *, side: int = _SIDE) -> str:
    """An image uint8 [H, W, C] as an element; small ones are enlarged by a whole factor, large ones made smaller."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    longest = max(image.size)
    if longest < side:
        factor = side // longest
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    elif longest > side:
        image.thumbnail((side, side))
    data, media_type = png_or_jpeg(image, _MOST_PNG_BYTES)
    return html_picture(data, text, media_type)


def pictures(images: np.ndarray, captions: Sequence[str] = (), *, side: int = _SIDE) -> str:
    """Images uint8 [n, H, W, C] beside each other, with a line of text below each where there are captions."""
    parts = []
    for index, image in enumerate(images):
        below = f"<figcaption>{escaped(captions[index])}</figcaption>" if index < len(captions) else ""
        parts.append(f"<figure>{picture(image, f'picture {index}', side=side)}{below}</figure>")
    return f'<div class="studio-row">{"".join(parts)}</div>'


def strips(clips: np.ndarray, *, given: int = 0, frames: int | None = None) -> str:
    """Clips uint8 [n, T, H, W, C], a row for each and a column for each frame; the newest frames of long ones.

    Args:
      given: frames at the beginning that were given, which have a border.
      frames: how many frames there will be, whose places are shown empty; None for those of `clips`.
    """
    count, total = clips.shape[:2]
    first = max(0, total - _STRIP)
    side = max(32, min(_SIDE, 1400 // max(1, min(frames or total, 12))))
    rows = []
    for clip in range(count):
        cells = []
        for index in range(first, total):
            kind = ' class="studio-given"' if index < given else ""
            cells.append(f"<figure{kind}>{picture(clips[clip, index], f'frame {index}', side=side)}"
                         f"<figcaption>{index}</figcaption></figure>")  # fmt: skip
        waiting = min(max(0, (frames or total) - total), _STRIP)
        cells += [f'<figure class="studio-waiting" style="width:{side}px;height:{side}px"></figure>'] * waiting
        rows.append(f'<div class="studio-row">{"".join(cells)}</div>')
    left_out = f"<p>The first {first} frames are left out here.</p>" if first else ""
    return left_out + "".join(rows)


def animation(clips: np.ndarray, fps: float) -> str:
    """Clips uint8 [n, T, H, W, C] as one moving picture in a grid, which repeats: a GIF, or an MP4 of large ones."""
    grid = video_grid(clips)
    longest = max(grid.shape[1:3])
    scale = max(1, 2 * _SIDE // longest)
    small = longest * scale <= 2 * _LARGE
    with tempfile.TemporaryDirectory(prefix="starflow-studio-") as folder:
        path = Path(folder) / ("clip.gif" if small else "clip.mp4")
        write = write_gif if small else write_mp4
        write(path, grid, fps=fps, scale=scale)
        data = path.read_bytes()
    if small:
        return html_picture(data, "the finished clips", "image/gif")
    return html_video(data, "the finished clips")


def heat_maps(values: np.ndarray, *, side: int = _SIDE) -> str:
    """Maps of values [T, h, w] in colours with one scale for all of them, which is stated below."""
    low, high = _range(values)
    share = np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)
    colours = _colours(np.nan_to_num(share, nan=1.0, posinf=1.0))
    captions = [str(index) for index in range(len(values))] if len(values) > 1 else []
    scale = _colours(np.linspace(0.0, 1.0, 128)[None].repeat(12, axis=0))
    return (
        f"{pictures(colours, captions, side=side)}"
        f'<p class="studio-scale">{low:.2f} {picture(scale, "the scale of the colours")} {high:.2f} bits/dim</p>'
    )


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _colours(share: np.ndarray) -> np.ndarray:
    """Values from 0 to 1 as colours of the map "viridis", uint8 [..., 3]."""
    import matplotlib  # imported here because it takes a second

    return np.rint(matplotlib.colormaps["viridis"](share)[..., :3] * 255.0).astype(np.uint8)
