"""The frames of a video as a player shows them: rotated by the display matrix, with square pixels, in RGB."""

from __future__ import annotations

from typing import Any

import numpy as np

from starflow_jax.core.choices import Background
from starflow_jax.core.config.checks import check
from starflow_jax.media.displayed_images import LEVELS

MAX_FRAME_PIXELS = 2**25
_ATTACHED_PICTURE = 0x400  # FFmpeg's disposition of a stream


def check_frame(height: int, width: int) -> None:
    """Raises ValueError for a frame that is empty or too large."""
    check(
        0 < height * width <= MAX_FRAME_PIXELS,
        f"a frame must have at most {MAX_FRAME_PIXELS} pixels, got {height} x {width}",
    )


def first_video(container: Any) -> Any:
    """The first stream of frames of an open container of PyAV; the cover of a piece of music is none.

    Raises:
      ValueError: there is none, or its codec is not known.
    """
    streams = [stream for stream in container.streams.video if not int(stream.disposition) & _ATTACHED_PICTURE]
    check(len(streams) > 0, "it contains no video")
    check(streams[0].codec_context is not None, "its codec is not known")
    return streams[0]


def frame_size(frame: Any, stream: Any) -> tuple[int, int]:
    """Rows and columns of a decoded frame as it is displayed.

    Args:
      frame: of PyAV; stream: its video stream.

    Raises:
      ValueError: the frame is empty or too large.
    """
    height, width = frame.height, _square_width(frame, stream)
    return (width, height) if _turn(frame)[0] else (height, width)


def frame_pixels(frame: Any, stream: Any, background: Background = "white") -> np.ndarray:
    """A decoded frame as it is displayed, uint8 [H, W, 3].

    Colours are converted by the matrix and the range that the frame is tagged with; without tags these are those of
    BT.601 with limited range, as FFmpeg assumes.

    Args:
      frame: of PyAV; stream: its video stream.
      background: the colour below transparent pixels.

    Raises:
      ValueError: the frame is empty or too large.
    """
    width = _square_width(frame, stream)
    pixels = frame.reformat(width=width, format="rgba" if _has_alpha(frame) else "rgb24").to_ndarray()
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255.0
        pixels = np.rint(pixels[..., :3] * alpha + LEVELS[background] * (1.0 - alpha)).astype(np.uint8)
    transposed, flip_rows, flip_columns = _turn(frame)
    if transposed:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def _square_width(frame: Any, stream: Any) -> int:
    """The columns of a frame of square pixels with the same rows."""
    check_frame(frame.height, frame.width)
    ratio = float(stream.sample_aspect_ratio or 1)
    width = max(1, round(frame.width * ratio)) if ratio > 0 else frame.width
    check_frame(frame.height, width)
    return width


def _turn(frame: Any) -> tuple[bool, bool, bool]:
    """Whether rows and columns are exchanged, and whether the rows and the columns of the result are then reversed.

    The display matrix (a, b, u, c, d, v, x, y, w) maps column p and row q to column a p + c q and row b p + d q. It is
    rounded to the nearest multiple of 90 degrees.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    matrix = np.frombuffer(bytes(data), np.int32) if data is not None else np.zeros(0, np.int32)
    if len(matrix) < 9:
        return False, False, False
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _has_alpha(frame: Any) -> bool:
    return frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)
