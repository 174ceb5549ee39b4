"""Aspect-ratio buckets: image sizes of about equal area whose sides are multiples of stride times patch size."""

from __future__ import annotations

import math

ASPECT_RATIOS = ("1:1", "2:3", "3:2", "16:9", "9:16", "4:5", "5:4", "21:9", "9:21")
"""The buckets of mixed-aspect training, as `"width:height"`."""


def aspect_ratio_value(aspect_ratio: str | float) -> float:
    """Width divided by height of `"width:height"`, or of a ratio that already is a number.

    Raises:
      ValueError: the value is neither, or not above 0.
    """
    if isinstance(aspect_ratio, str):
        try:
            width, height = (float(side) for side in aspect_ratio.split(":"))
        except ValueError:
            width = height = math.nan
    elif isinstance(aspect_ratio, bool):
        width = height = math.nan
    else:
        width, height = float(aspect_ratio), 1.0
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"aspect_ratio must be 'width:height' or a number, both above 0, got {aspect_ratio!r}.")
    return width / height


def image_size(target_size: int, aspect_ratio: str | float | None, multiple: int) -> tuple[int, int]:
    """Height and width in pixels of an image with about the area of a square of side `target_size`.

    With `r` = width / height the sides are `target_size / sqrt(r)` and `target_size * sqrt(r)`, each rounded
    to the nearest multiple (ties to the even one).

    Args:
      target_size: side of the square of the same area, pixels.
      aspect_ratio: `"width:height"` or that quotient as a number. None gives the square of side `target_size`, without
        rounding.
      multiple: both sides become multiples of it: the stride of the autoencoder times the patch size.

    Returns:
      `(height, width)`, pixels.

    Raises:
      ValueError: a size below 1, an invalid ratio, or a side that would round to 0.
    """
    for name, value in (("target_size", target_size), ("multiple", multiple)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if aspect_ratio is None:
        return target_size, target_size
    root = math.sqrt(aspect_ratio_value(aspect_ratio))
    height = round(target_size / root / multiple) * multiple
    width = round(target_size * root / multiple) * multiple
    if height == 0 or width == 0:
        raise ValueError(
            f"multiple must leave both sides above 0, got {multiple} for target_size {target_size} "
            f"and aspect_ratio {aspect_ratio!r}."
        )
    return height, width


def nearest_aspect_ratio(height: int, width: int, buckets: tuple[str, ...] = ASPECT_RATIOS) -> str:
    """The bucket nearest to an image of `height` x `width` pixels, by the distance between logarithms of the ratios.

    Raises:
      ValueError: a side below 1, or no buckets.
    """
    for name, value in (("height", height), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if not buckets:
        raise ValueError("buckets must name at least one aspect ratio, got none.")
    ratio = width / height
    return min(buckets, key=lambda bucket: abs(math.log(aspect_ratio_value(bucket) / ratio)))
