"""Videos as files: one file for all of them, tiled, or a folder with a file each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from starflow_jax.cli.errors import CommandError

if TYPE_CHECKING:
    from starflow_jax.sampling.videos.video_sampling import Videos

SUFFIXES = (".mp4", ".gif", ".png", ".npz")

# The largest side that H.264 and browsers support.
_MAX_SIDE = 8192
_COMFORTABLE_SIDE = 128
_MAX_SLUG = 60


def choose_scale(out: Path, count: int, frames: int, size: tuple[int, int], requested: int | None) -> int:
    """The side in pixels of an enlarged pixel: `requested`, or one that makes a video about 128 pixels wide.

    Raises:
      CommandError: the image or video would be too large.
    """
    if out.suffix == ".npz":
        if requested is not None:
            raise CommandError("--scale cannot be combined with --out x.npz, which stores unscaled frames")
        return 1
    from starflow_jax.media import grid_columns

    columns, rows = 1, 1
    if out.suffix == ".png":
        columns, rows = frames, count
    elif out.suffix:
        columns = grid_columns(count)
        rows = count // columns
    longest = max(rows * size[0], columns * size[1])
    scale = requested or max(1, min(_COMFORTABLE_SIDE // max(size), _MAX_SIDE // 2 // longest))
    if scale * longest > _MAX_SIDE:
        raise CommandError(
            f"--out {out} would be {rows * size[0] * scale} x {columns * size[1] * scale} pixels, at most {_MAX_SIDE} "
            "are allowed on a side; take a smaller --scale, fewer videos, or a folder"
        )
    return scale


def write_videos(
    out: Path, samples: Videos, keep: np.ndarray, captions: Sequence[str], *, fps: float, scale: int
) -> list[str]:
    """Writes the videos with indices `keep`, int [m].

    Args:
      out: the file, or a folder for one file per video.
      samples: all sampled videos.
      keep: indices of the videos to write.
      captions: the captions of these m videos.
      fps: frames per second.
      scale: see `choose_scale`.

    Returns:
      The name of the file of each video.
    """
    from starflow_jax.core.atomic_writing import replacing, replacing_folder
    from starflow_jax.media import video_grid, video_strip, write_mp4, write_png, write_video

    videos = samples.videos[keep]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        with replacing(out) as temporary:
            np.savez_compressed(
                temporary,
                video=videos,
                caption=np.asarray(captions),
                x=samples.x[keep],
                denoised=samples.denoised[keep],
            )
    elif out.suffix == ".png":
        write_png(out, video_strip(videos), scale=scale)
    elif out.suffix:
        write_video(out, video_grid(videos), fps=fps, scale=scale)
    else:
        names = [file_name(index, len(videos), caption) for index, caption in enumerate(captions)]
        with replacing_folder(out) as folder:
            for name, video in zip(names, videos, strict=True):
                write_mp4(folder / name, video, fps=fps, scale=scale)
        return names
    return [out.name] * len(videos)


def file_name(index: int, count: int, caption: str) -> str:
    """A file name that is valid on every file system: the index, and the letters and digits of the caption."""
    slug = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:_MAX_SLUG].rstrip("-")
    return f"{index:0{len(str(count - 1))}d}{'-' if slug else ''}{slug}.mp4"
