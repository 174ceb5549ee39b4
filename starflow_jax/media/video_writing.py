"""Writes videos: MP4 (H.264), GIF, a strip of frames in one PNG, a folder of PNGs; several videos in a grid.

All files and folders are written atomically.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from starflow_jax.core.atomic_writing import replacing, replacing_folder
from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.media.images import image_grid, to_uint8, write_png

MAX_FPS = 240
VIDEO_SUFFIXES = (".mp4", ".gif", ".png")

# The tags of an MP4, by which players convert its colours, in the numbers of ITU-T H.273: primaries of BT.709 and the
# transfer function of sRGB, which are those of images; the matrix of BT.601, which programs that ignore tags assume.
_PRIMARIES, _TRANSFER, _MATRIX, _LIMITED_RANGE = 1, 13, 6, 1

# The constant rate factor of x264: 0 is lossless, 23 the default. Enlarged small videos show artefacts, and are small.
_CRF = 12


def video_grid(videos: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Lays videos [n, T, H, W, C] out in a grid, as `image_grid` does images: uint8 [T, rows * H, columns * W, C].

    Raises:
      ValueError: an invalid shape, or see `image_grid`.
    """
    videos = _checked(videos, 5)
    return np.stack([image_grid(videos[:, frame], columns) for frame in range(videos.shape[1])])


def video_strip(videos: np.ndarray) -> np.ndarray:
    """Videos [n, T, H, W, C] as one image, a row for each video and a column for each frame: uint8 [n * H, T * W, C].

    Raises:
      ValueError: an invalid shape.
    """
    videos = _checked(videos, 5)
    return image_grid(videos.reshape(-1, *videos.shape[2:]), columns=videos.shape[1])


def write_video(path: str | os.PathLike[str], video: np.ndarray, *, fps: float, scale: int = 1) -> None:
    """Writes one video [T, H, W, C] in the format that the suffix names: .mp4, .gif, or .png for a strip of frames.

    Args:
      path: the file; its folder is created if missing.
      video: uint8, or floating point in [-1, 1]; C of 1 or 3.
      fps: frames per second; a PNG has none.
      scale: every pixel becomes a square of this side.

    Raises:
      ValueError: an unknown suffix, or see the writer of the format.
      OSError: the file cannot be written.
    """
    suffix = Path(path).suffix
    if suffix == ".mp4":
        write_mp4(path, video, fps=fps, scale=scale)
    elif suffix == ".gif":
        write_gif(path, video, fps=fps, scale=scale)
    elif suffix == ".png":
        write_png(path, video_strip(_checked(video, 4)[None]), scale=scale)
    else:
        raise ValueError(f"path must end in {', '.join(VIDEO_SUFFIXES)}, got {str(path)!r}")


def write_mp4(path: str | os.PathLike[str], video: np.ndarray, *, fps: float, scale: int = 1) -> None:
    """Writes an MP4 file, H.264 with 4:2:0 chroma, which every browser plays.

    The format needs even sides: an odd one is extended by a copy of the last row or column. It is not lossless. Tags
    say how its colours are coded: limited range, the matrix of BT.601, the primaries of BT.709, the transfer of sRGB.

    Args:
      path, video, fps, scale: as for `write_video`; fps above 0 and at most 240.

    Raises:
      ValueError: an invalid shape, dtype, rate or scale.
      OSError: the file cannot be written.
    """
    frames = _enlarged(video, scale)
    _check_fps(fps)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    frames = np.ascontiguousarray(np.broadcast_to(frames, (*frames.shape[:3], 3)))
    import av  # imported here because its libraries are slow to load

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(_CRF)}
        codec = stream.codec_context
        codec.color_primaries, codec.color_trc, codec.colorspace = _PRIMARIES, _TRANSFER, _MATRIX
        codec.color_range = _LIMITED_RANGE
        for frame in frames:
            coded = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG"
            )
            container.mux(stream.encode(coded))
        container.mux(stream.encode())


def write_gif(path: str | os.PathLike[str], video: np.ndarray, *, fps: float, scale: int = 1) -> None:
    """Writes a looping GIF. Grey is exact; colours are reduced to 256 per frame.

    Durations are multiples of 1/100 s, so that rates are rounded, to at most 50 frames per second.

    Args:
      path, video, fps, scale: as for `write_video`; fps above 0 and at most 240.

    Raises:
      ValueError: an invalid shape, dtype, rate or scale.
      OSError: the file cannot be written.
    """
    frames = _enlarged(video, scale)
    _check_fps(fps)
    images = [Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame) for frame in frames]
    # Viewers play a GIF with a duration below 2/100 s slowly.
    duration = 10 * min(65535, max(2, round(100 / fps)))  # 16 bits in the file
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=False
        )


def write_frames(path: str | os.PathLike[str], video: np.ndarray, *, scale: int = 1) -> None:
    """Writes a new folder of PNG files, one for each frame of a video [T, H, W, C], numbered from 0.

    Raises:
      ValueError: an invalid shape, dtype or scale.
      OSError: the folder cannot be written, or holds files.
    """
    frames = _checked(video, 4)
    digits = len(str(len(frames) - 1))
    with replacing_folder(Path(path)) as temporary:
        for index, frame in enumerate(frames):
            write_png(temporary / f"{index:0{digits}d}.png", frame, scale=scale)


def _checked(videos: np.ndarray, dimensions: int) -> np.ndarray:
    """Videos as uint8, of the checked shape [T, H, W, C] or, with 5 dimensions, [n, T, H, W, C]."""
    videos = np.asarray(videos)
    letters = "n, T, H, W, C" if dimensions == 5 else "T, H, W, C"
    check(
        videos.ndim == dimensions and videos.size > 0 and videos.shape[-1] in (1, 3),
        f"video must be [{letters}] with C of 1 or 3, all above 0, got {list(videos.shape)}",
    )
    return to_uint8(videos)


def _enlarged(video: np.ndarray, scale: int) -> np.ndarray:
    check_integer("scale", scale, minimum=1)
    return _checked(video, 4).repeat(scale, axis=1).repeat(scale, axis=2)


def _check_fps(fps: float) -> None:
    check_real("fps", fps, minimum=0.0)
    check(0 < fps <= MAX_FPS, f"fps must be above 0 and at most {MAX_FPS}, got {fps}")
