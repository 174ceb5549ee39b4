"""From the bytes of a picture to pixels of the size that a model takes.

The files are other people's: formats are named and not guessed from suffixes, sizes are checked before pixels are
unpacked, and whatever the decoder raises makes the file a bad one.
"""

from __future__ import annotations

import math
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from starflow_jax.data.decoding.bad_examples import BadExample, reason_of

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 2**26
# The EXIF tag that says how a camera was held, and the values of it that exchange rows and columns.
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Cut(NamedTuple):
    """How a picture becomes one of `size`: scaled to cover it, then cropped.

    Attributes:
      size: rows and columns; channels: 1 (grey) or 3 (RGB).
      place: where the crop lies along the side that is too long, 0 (top, left) to 1; flip: whether it is mirrored.
    """

    size: tuple[int, int]
    channels: int
    place: float = 0.5
    flip: bool = False


def picture_size(stream: BinaryIO, name: str) -> tuple[int, int]:
    """Rows and columns of a picture as it is looked at, from its header.

    Raises:
      BadExample: no picture, or a huge one.
    """
    try:
        with Image.open(stream, formats=FORMATS) as image:
            _check_size(image)
            width, height = image.size
            return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)
    except Exception as error:  # decoders raise nearly everything on damaged files
        raise BadExample(name, reason_of(error)) from error


def decode_picture(stream: BinaryIO, name: str, cut: Cut) -> np.ndarray:
    """A picture as uint8 [rows, columns, channels]; of an animation the first frame.

    A JPEG that is much larger than needed is unpacked at a fraction of its size. Transparency is dropped.

    Raises:
      BadExample: anything that cannot be unpacked whole, or is huge.
    """
    try:
        with Image.open(stream, formats=FORMATS) as image:
            _check_size(image)
            turn = _orientation(image)
            rows, columns = cut.size[::-1] if turn in _SIDEWAYS else cut.size
            mode = "L" if cut.channels == 1 else "RGB"
            scale = max(columns / image.width, rows / image.height)
            if scale < 1.0:
                image.draft(mode, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            picture = _eight_bits(image).convert(mode)
    except Exception as error:  # decoders raise nearly everything on damaged files
        raise BadExample(name, reason_of(error)) from error
    if turn in _TURNS:
        picture = picture.transpose(_TURNS[turn])
    return fit(picture, cut)


def fit(picture: Image.Image, cut: Cut) -> np.ndarray:
    """A picture of mode L or RGB, scaled and cropped: uint8 [rows, columns, 1 or 3]."""
    rows, columns = cut.size
    scale = max(columns / picture.width, rows / picture.height)
    width, height = columns / scale, rows / scale
    left, top = (picture.width - width) * cut.place, (picture.height - height) * cut.place
    box = (max(left, 0.0), max(top, 0.0), min(left + width, picture.width), min(top + height, picture.height))
    if picture.size != (columns, rows):
        # Hamming's filter shrinks as sharply as a cubic one in two thirds of the time.
        method = Image.Resampling.HAMMING if scale < 1.0 else Image.Resampling.BICUBIC
        picture = picture.resize((columns, rows), method, box=box, reducing_gap=3.0)
    if cut.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture).reshape(rows, columns, cut.channels)


def _check_size(image: Image.Image) -> None:
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ValueError(f"it has {image.height} x {image.width} pixels, more than {MAX_PIXELS} or none")


def _orientation(image: Image.Image) -> int:
    # A PNG may keep it behind the pixels, which a header should not cost; cameras write JPEG.
    return int(image.getexif().get(_ORIENTATION, 1)) if image.format == "JPEG" else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture unpacked, in a mode that converts to L and RGB without clipping."""
    image.load()
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel, and floating point scaled likewise
        values = np.clip(np.asarray(image, np.float64), 0, 65535) / 257
        return Image.fromarray(values.astype(np.uint8))
    # Through RGBA a palette keeps its colours where some are transparent.
    return image.convert("RGBA") if image.mode in ("P", "PA") else image
