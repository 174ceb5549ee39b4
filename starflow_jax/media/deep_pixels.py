"""Images with more than eight bits: which range their numbers have, and how they become eight bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from starflow_jax.core.config.checks import check

_TOLERANCE = 1e-6  # by which floats may exceed 0..1
_NO_RANGE = "its pixels are 32-bit or signed integers, whose range it does not state; save it with 8 or 16 bits"
# Tags of TIFF.
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 258, 262, 339
_REDUCED, _WHITE_IS_ZERO, _SIGNED = 1, 0, 2


def check_tiff(image: Image.Image) -> None:
    """Checks that the first image of a TIFF, if the image is one, is the picture itself, of numbers without a sign.

    Raises:
      ValueError: it is a preview, as in raw files of cameras, or has signed numbers.
    """
    check(
        not int(_tag(image, _SUBFILE, 0)) & _REDUCED,
        "its first image is a preview of another one, as in raw files of cameras; convert it first",
    )
    check(
        _tag(image, _SAMPLE_FORMAT, 1) != _SIGNED,
        _NO_RANGE,
    )


def eight_bits(image: Image.Image, background: int) -> Image.Image:
    """A grey image of integers of up to 16 bits, or of floats, in mode L.

    Integers are scaled from 0..65535 (0..4095 in a TIFF of 12 bits), and floats from 0..1.

    Args:
      image: decoded, of mode "F" or a mode that begins with "I"; background: the level of transparent pixels.

    Raises:
      ValueError: floats outside 0..1, or integers of 32 bits.
    """
    values = np.asarray(image)
    if image.mode == "F":
        levels = _from_floats(values)
    else:
        check(
            image.mode.startswith("I;16") or image.format == "PNG",
            _NO_RANGE,
        )
        bits = int(_tag(image, _BITS, 16))
        greatest = 2**bits - 1 if 8 < bits < 16 else 65535
        levels = (np.clip(values.astype(np.int64), 0, greatest) * 255 // greatest).astype(np.uint8)
    if _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:  # Pillow inverts images of eight bits alone
        levels = 255 - levels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and image.mode != "F":
        levels = np.where(values == transparent, np.uint8(background), levels)
    return Image.fromarray(levels)


def _from_floats(values: np.ndarray) -> np.ndarray:
    finite = bool(np.isfinite(values).all())
    lowest, highest = (float(values.min()), float(values.max())) if finite else (math.nan, math.nan)
    check(
        lowest >= -_TOLERANCE and highest <= 1.0 + _TOLERANCE,
        f"its floats must be from 0 to 1, got {lowest:g} to {highest:g}"
        if finite
        else "its floats must be from 0 to 1, got values that are not finite",
    )
    return np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)


def _tag(image: Image.Image, tag: int, default: int) -> Any:
    """The first value of a tag of a TIFF; `default` for other files and where the tag is missing."""
    tags: Any = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is None:
        return default
    value = tags.get(tag, default)
    return value[0] if isinstance(value, tuple) and value else value
