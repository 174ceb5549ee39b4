"""Small files of every kind for the tests of data."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from starflow_jax.media import write_video


def picture(seed: int, height: int = 24, width: int = 24) -> np.ndarray:
    """A smooth picture, uint8 [H, W, 3], that shrinking and JPEG change little."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(40, 215, (2, 2, 3))
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    top = corners[0, 0] * (1 - columns) + corners[0, 1] * columns
    bottom = corners[1, 0] * (1 - columns) + corners[1, 1] * columns
    return np.rint(top * (1 - rows) + bottom * rows).astype(np.uint8)


SHOWN = picture(3, 24, 40)  # rows x columns as it is displayed
# What a camera stores for each EXIF orientation, so that turning it back displays SHOWN.
STORED = {
    1: SHOWN,
    2: SHOWN[:, ::-1],
    3: SHOWN[::-1, ::-1],
    4: SHOWN[::-1],
    5: SHOWN.transpose(1, 0, 2),
    6: np.rot90(SHOWN),
    7: SHOWN[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(SHOWN, -1),
}


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_photos(folder: Path, sizes: dict[str, list[tuple[int, int]]], *, captions: bool = True) -> None:
    """PNGs in a folder a class, named 0.png, 1.png, ..., with captions beside."""
    for place, (name, shapes) in enumerate(sizes.items()):
        (folder / name).mkdir(parents=True)
        for number, shape in enumerate(shapes):
            path = folder / name / f"{number}.png"
            path.write_bytes(encoded(picture(100 * place + number, *shape)))
            if captions:
                path.with_suffix(".txt").write_text(f"a {name}\n")


def write_tar(path: Path, examples: list[dict[str, bytes]], *, folder: str = "") -> None:
    """A shard of WebDataset's layout: each example's bytes by suffix."""
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(examples):
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{folder}{number:03d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_clip(path: Path, frames: int, *, fps: float = 8.0, size: tuple[int, int] = (32, 32)) -> None:
    """A video whose frame t is of brightness 20 + 8 t, so that it says which it is."""
    grey = np.arange(frames, dtype=np.uint8) * 8 + 20
    video = np.broadcast_to(grey[:, None, None, None], (frames, *size, 3))
    if path.suffix == ".gif":
        write_video(path, video, fps=fps)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        stream.options = {"crf": "1", "g": "5", "bf": "2"}  # several key frames, and frames out of order between them
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image))))
        container.mux(stream.encode())


def recorded(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    """The function, which also adds the first argument of every call to `calls`."""

    def call(first: Any, *others: Any) -> Any:
        calls.append(first)
        return function(first, *others)

    return call


def frame_numbers(clip: np.ndarray) -> np.ndarray:
    """Which frames of `write_clip` a clip [T, H, W, C] shows."""
    return np.rint((clip.astype(float).mean(axis=(1, 2, 3)) - 20) / 8).astype(int)


def write_json(path: Path, values: object) -> None:
    """A JSON file."""
    path.write_text(json.dumps(values))
