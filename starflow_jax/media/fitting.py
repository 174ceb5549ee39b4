"""Frames of any size and colour as a model takes them: cropped about the centre, resized, grey or RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

from starflow_jax.core.config.checks import check


def fit_frame(frame: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """Crops the largest centred rectangle of the wanted shape and resizes it.

    Pixels are averaged where the frame shrinks, so that an enlargement by a whole number is undone exactly, and
    interpolated (bicubic) where it grows. A frame that fits comes back unchanged. Grey is the luma of ITU-R BT.601.

    Args:
      frame: uint8 [H, W, C], C of 1 or 3.
      size: rows and columns wanted.
      channels: 1 (grey) or 3 (RGB).

    Returns:
      uint8 [rows, columns, channels].

    Raises:
      ValueError: another shape, dtype or number of channels, or a size below 1.
    """
    check(
        frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] in (1, 3) and frame.size > 0,
        f"frame must be uint8 [H, W, C] with C of 1 or 3, got {frame.dtype} {list(frame.shape)}",
    )
    check(channels in (1, 3), f"channels must be 1 (grey) or 3 (RGB) for a picture, got {channels}")
    rows, columns = size
    check(rows >= 1 and columns >= 1, f"size must be at least 1 x 1, got {rows} x {columns}")
    height, width = frame.shape[:2]
    image = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame)
    # The side that is too long for the wanted shape loses both its ends.
    kept_height = max(1, min(height, round(width * rows / columns)))
    kept_width = max(1, min(width, round(height * columns / rows)))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    image = image.crop((left, top, left + kept_width, top + kept_height))
    shrinks = kept_height >= rows and kept_width >= columns
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    image = image.resize((columns, rows), method)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(rows, columns, channels)
