"""Decodes image files to pixels of the size that a model reads.

The files are untrusted: any exception of the decoder makes the file a bad example.
"""

from __future__ import annotations

from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from starflow_jax.core.choices import Background
from starflow_jax.data.decoding.bad_examples import BadExample, error_reason
from starflow_jax.media.displayed_images import displayed, displayed_size, is_grey, open_image

# Grows when files are decoded to other pixels than before, so that results of the earlier ones are not used.
DECODING_VERSION = 2


class Crop(NamedTuple):
    """The geometry of an image: resized to cover `size`, then cropped.

    Attributes:
      size: rows and columns; channels: 1 (grey) or 3 (RGB).
      position: of the crop along the side that is too long, 0 (top, left) to 1; flip: whether the image is mirrored.
      background: the colour that transparent pixels are composed onto.
    """

    size: tuple[int, int]
    channels: int
    position: float = 0.5
    flip: bool = False
    background: Background = "white"


def image_file_size(stream: BinaryIO, name: str) -> tuple[int, int]:
    """Rows and columns of an image as it is displayed, from its header.

    Raises:
      BadExample: not an image, or too large.
    """
    return image_file_facts(stream, name)[0]


def image_file_facts(stream: BinaryIO, name: str) -> tuple[tuple[int, int], bool]:
    """Rows and columns of an image as it is displayed, and whether it is grey, from its header.

    Raises:
      BadExample: not an image, or too large.
    """
    try:
        with open_image(stream) as image:
            return displayed_size(image), is_grey(image)
    except Exception as error:  # decoders raise many kinds of errors on damaged files
        raise BadExample(name, error_reason(error)) from error


def decode_image(stream: BinaryIO, name: str, crop: Crop) -> np.ndarray:
    """An image as it is displayed, uint8 [rows, columns, channels]; the first frame of an animation.

    A JPEG that is much larger than needed is decoded at a fraction of its size.

    Raises:
      BadExample: the file cannot be decoded completely, or is too large.
    """
    try:
        with open_image(stream) as image:
            mode: Literal["L", "RGB"] = "L" if crop.channels == 1 else "RGB"
            decoded = displayed(image, mode=mode, background=crop.background, at_least=crop.size)
    except Exception as error:  # decoders raise many kinds of errors on damaged files
        raise BadExample(name, error_reason(error)) from error
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
