"""Still images: pixels, a grid of samples, and PNG files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from starflow_jax.core.atomic_writing import replacing


def grid_columns(count: int) -> int:
    """Columns of a full rectangle of `count` images: the smallest divisor of `count` that is at least its square root.

    A prime count gives a single row. Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    columns = math.isqrt(count - 1) + 1  # the square root, rounded up
    while count % columns:
        columns += 1
    return columns


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images of any shape as uint8 pixels 0..255.

    Floating-point values in [-1, 1] are clipped, scaled and rounded; uint8 is returned unchanged.

    Raises:
      ValueError: an invalid dtype, or values that are not finite.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    # "V" is the kind of the extension dtype bfloat16.
    if images.dtype.kind not in "fV":
        raise ValueError(f"images must be uint8 or floating point, got dtype {images.dtype}.")
    images = images.astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(images)))
    if bad:
        raise ValueError(f"images must be finite, got {bad} values that are not.")
    return np.rint((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Lays images out row by row, without gaps.

    Args:
      images: [n, h, w, c], floating point in [-1, 1] or uint8.
      columns: images in a row; None takes `grid_columns(n)`. Unused cells of the last row are black.

    Returns:
      uint8 [rows * h, columns * w, c].

    Raises:
      ValueError: an invalid shape or dtype, or columns below 1.
    """
    images = np.asarray(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must have shape [n, h, w, c], all above 0, got {list(images.shape)}.")
    count, height, width, channels = images.shape
    columns = grid_columns(count) if columns is None else columns
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}.")
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = to_uint8(images)
    return (
        cells.reshape(rows, columns, height, width, channels)
        .transpose(0, 2, 1, 3, 4)
        .reshape(rows * height, columns * width, channels)
    )


def write_png(path: str | os.PathLike[str], image: np.ndarray, *, scale: int = 1) -> None:
    """Writes one image as a PNG file, atomically.

    Args:
      path: the file; its folder is created if missing, an existing file is replaced.
      image: [h, w, c] or [h, w] with c of 1 (grey), 3 (RGB) or 4 (RGBA); uint8, or floating point in [-1, 1].
      scale: every pixel becomes a square of this side, so that small images are visible.

    Raises:
      ValueError: an invalid shape, dtype or scale.
      OSError: the file cannot be written.
    """
    pixels = to_uint8(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] not in (1, 3, 4):
        raise ValueError(f"image must have shape [h, w] or [h, w, c] with c of 1, 3 or 4, got {list(np.shape(image))}.")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}.")
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG")
