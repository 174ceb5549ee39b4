"""Decodes image files to pixels of the size that a model reads.

The files are untrusted: only the listed formats are decoded, sizes are checked before pixels are decompressed, and
any exception of the decoder makes the file a bad example.
"""

from __future__ import annotations

import math
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from starflow_jax.data.decoding.bad_examples import BadExample, error_reason

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 2**26
# The EXIF orientation tag, and its values that exchange rows and columns.
_ORIENTATION, _TRANSPOSED = 0x0112, (5, 6, 7, 8)
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Crop(NamedTuple):
    """The geometry of an image: resized to cover `size`, then cropped.

    Attributes:
      size: rows and columns; channels: 1 (grey) or 3 (RGB).
      position: of the crop along the side that is too long, 0 (top, left) to 1; flip: whether the image is mirrored.
    """

    size: tuple[int, int]
    channels: int
    position: float = 0.5
    flip: bool = False


def image_file_size(stream: BinaryIO, name: str) -> tuple[int, int]:
    """Rows and columns of an image in its displayed orientation, from its header.

    Raises:
      BadExample: not an image, or too large.
    """
    try:
        with Image.open(stream, formats=FORMATS) as image:
            _check_size(image)
            width, height = image.size
            return (width, height) if _orientation(image) in _TRANSPOSED else (height, width)
    except Exception as error:  # decoders raise many kinds of errors on damaged files
        raise BadExample(name, error_reason(error)) from error


def decode_image(stream: BinaryIO, name: str, crop: Crop) -> np.ndarray:
    """An image as uint8 [rows, columns, channels]; the first frame of an animation.

    A JPEG that is much larger than needed is decoded at a fraction of its size. Transparency is dropped.

    Raises:
      BadExample: the file cannot be decoded completely, or is too large.
    """
    try:
        with Image.open(stream, formats=FORMATS) as image:
            _check_size(image)
            orientation = _orientation(image)
            rows, columns = crop.size[::-1] if orientation in _TRANSPOSED else crop.size
            mode = "L" if crop.channels == 1 else "RGB"
            scale = max(columns / image.width, rows / image.height)
            if scale < 1.0:
                image.draft(mode, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            decoded = _eight_bits(image).convert(mode)
    except Exception as error:  # decoders raise many kinds of errors on damaged files
        raise BadExample(name, error_reason(error)) from error
    if orientation in _TRANSPOSES:
        decoded = decoded.transpose(_TRANSPOSES[orientation])
    return resize_and_crop(decoded, crop)


def resize_and_crop(decoded: Image.Image, crop: Crop) -> np.ndarray:
    """An image of mode L or RGB resized and cropped, uint8 [rows, columns, 1 or 3]."""
    rows, columns = crop.size
    scale = max(columns / decoded.width, rows / decoded.height)
    width, height = columns / scale, rows / scale
    left, top = (decoded.width - width) * crop.position, (decoded.height - height) * crop.position
    box = (max(left, 0.0), max(top, 0.0), min(left + width, decoded.width), min(top + height, decoded.height))
    if decoded.size != (columns, rows):
        # For downscaling, the Hamming filter is as sharp as a cubic one and takes two thirds of the time.
        method = Image.Resampling.HAMMING if scale < 1.0 else Image.Resampling.BICUBIC
        decoded = decoded.resize((columns, rows), method, box=box, reducing_gap=3.0)
    if crop.flip:
        decoded = decoded.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(decoded).reshape(rows, columns, crop.channels)


def _check_size(image: Image.Image) -> None:
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ValueError(f"it has {image.height} x {image.width} pixels, more than {MAX_PIXELS} or none")


def _orientation(image: Image.Image) -> int:
    # A PNG may store the tag after the pixels, which is too slow to look up; cameras write JPEG.
    return int(image.getexif().get(_ORIENTATION, 1)) if image.format == "JPEG" else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The decoded image in a mode that converts to L and RGB without clipping."""
    image.load()
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel, or floating point of the same range
        values = np.clip(np.asarray(image, np.float64), 0, 65535) / 257
        return Image.fromarray(values.astype(np.uint8))
    # Conversion through RGBA preserves the colours of a palette with transparency.
    return image.convert("RGBA") if image.mode in ("P", "PA") else image
