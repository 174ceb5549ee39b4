"""Fits frames of any size and colour to a model: centre crop, resize, grey or RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

from starflow_jax.core.config.checks import check


def fit_frame(frame: np.ndarray, size: tuple[int, int], channels: int) -> np.ndarray:
    """Crops the largest centred rectangle of the target aspect ratio and resizes it.

    Pixels are averaged for downscaling, so that an enlargement by an integer factor is undone exactly, and interpolated
    (bicubic) for upscaling. A frame of the target size is unchanged. Grey is the luma of ITU-R BT.601.

    Args:
      frame: uint8 [H, W, C], C of 1 or 3.
      size: rows and columns of the result.
      channels: channels of the result, 1 (grey) or 3 (RGB).

    Returns:
      uint8 [rows, columns, channels].

    Raises:
      ValueError: an invalid shape, dtype or number of channels, or a size below 1.
    """
    check(
        frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] in (1, 3) and frame.size > 0,
        f"frame must be uint8 [H, W, C] with C of 1 or 3, got {frame.dtype} {list(frame.shape)}",
    )
    check(channels in (1, 3), f"channels must be 1 (grey) or 3 (RGB) for an image, got {channels}")
    rows, columns = size
    check(rows >= 1 and columns >= 1, f"size must be at least 1 x 1, got {rows} x {columns}")
    height, width = frame.shape[:2]
    image = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame)
    # The side that is too long is cropped at both ends.
    crop_height = max(1, min(height, round(width * rows / columns)))
    crop_width = max(1, min(width, round(height * columns / rows)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    image = image.crop((left, top, left + crop_width, top + crop_height))
    downscales = crop_height >= rows and crop_width >= columns
    method = Image.Resampling.BOX if downscales else Image.Resampling.BICUBIC
    image = image.resize((columns, rows), method)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(rows, columns, channels)
