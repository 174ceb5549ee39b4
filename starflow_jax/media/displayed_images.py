"""The pixels of an image file as a viewer shows them: upright, opaque, with eight bits.

Every reader of image files goes through `open_image` and `displayed`. The files are untrusted: only the formats of
`file_kind` are decoded, each by its own decoder, and sizes are checked before pixels are decompressed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

from PIL import Image, UnidentifiedImageError

from starflow_jax.core.choices import Background
from starflow_jax.core.config.checks import check
from starflow_jax.media.deep_pixels import check_tiff, eight_bits
from starflow_jax.media.file_kind import kind_of

MAX_PIXELS = 2**26
LEVELS: dict[Background, int] = {"white": 255, "grey": 128, "black": 0}
"""The level of a background in all channels."""

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
_GREY = ("1", "L", "LA", "La", "F")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
_PNG_CHUNK_LIMIT = 10_000


@contextmanager
def open_image(stream: IO[bytes], *, most_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Opens an image and reads its header; its format follows from its content.

    Args:
      stream: of the file, at its start; most_pixels: the largest number of pixels.

    Raises:
      ValueError: not an image, of an unsupported kind, or too large.
      Exception: decoders raise many other kinds of errors on damaged files.
    """
    kind = kind_of(stream)
    if kind is None:
        raise ValueError("it is not an image, or of an unsupported format")
    check(not kind.video, "it is a video, not an image")
    if kind.format == "HEIF":
        _add_heif()
    try:
        image = Image.open(stream, formats=(kind.format,))
    except UnidentifiedImageError as error:
        raise ValueError(f"its format is {kind.format}, but it is damaged or of a kind that is not read") from error
    with image:
        check_pixels(image.height, image.width, most_pixels)
        check_tiff(image)
        yield image


def check_pixels(height: int, width: int, most: int = MAX_PIXELS) -> None:
    """Raises ValueError for an image that is empty or has more than `most` pixels."""
    check(0 < height * width <= most, f"it has {height} x {width} pixels, more than {most} or none")


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """Rows and columns of an opened image as it is displayed."""
    width, height = image.size
    return (width, height) if _orientation(image) in _TRANSPOSED else (height, width)


def is_grey(image: Image.Image) -> bool:
    """Whether an opened image has one channel besides transparency."""
    return image.mode in _GREY or image.mode.startswith("I")


def displayed(
    image: Image.Image,
    *,
    mode: Literal["L", "RGB"] | None = None,
    background: Background = "white",
    at_least: tuple[int, int] | None = None,
) -> Image.Image:
    """The decoded image as it is displayed, in mode L (grey) or RGB; of an animation the current frame.

    Its EXIF orientation is applied, transparent pixels are composed onto the background, more than
    eight bits are scaled as `deep_pixels` says. Colour profiles are not applied.

    Args:
      image: opened by `open_image`.
      mode: of the result; None for L where the file is grey.
      background: the colour below transparent pixels.
      at_least: rows and columns. A JPEG may be decoded at a fraction of its size that covers these.

    Raises:
      ValueError: numbers whose range is not known, or colours of a kind that is not read.
      Exception: decoders raise many other kinds of errors on damaged files.
    """
    orientation = _orientation(image)
    if at_least is not None:
        rows, columns = at_least[::-1] if orientation in _TRANSPOSED else at_least
        scale = max(columns / image.width, rows / image.height)
        if scale < 1.0:
            image.draft(mode, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
    pixels = _opaque(image, background)
    if mode is not None and pixels.mode != mode:
        pixels = pixels.convert(mode)
    return pixels.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8; 1 where the tag is missing or damaged."""
    if image.format == "TIFF":  # Pillow has applied it to the size, and applies it to the pixels
        return 1
    try:
        # A PNG that may store the tag behind its pixels is decoded for it.
        late = image.format == "PNG" and "exif" not in image.info and _has_late_text(image)
        exif = image.getexif() if late else Image.Image.getexif(image)
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # the parser raises many kinds of errors; viewers show such an image as it is stored
        return 1


def _has_late_text(image: Image.Image) -> bool:
    """Whether chunks that can contain an orientation follow the pixels of a PNG."""
    stream: Any = getattr(image, "fp", None)
    if stream is None:  # decoded already
        return False
    position = stream.tell()
    try:
        stream.seek(8)
        behind = False
        for _ in range(_PNG_CHUNK_LIMIT):
            head = stream.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                return False
            behind = behind or head[4:] == b"IDAT"
            if behind and head[4:] in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            stream.seek(int.from_bytes(head[:4], "big") + 4, 1)
        return False
    finally:
        stream.seek(position)


def _opaque(image: Image.Image, background: Background) -> Image.Image:
    """The decoded image in mode L or RGB, without transparency."""
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        return eight_bits(image, LEVELS[background])
    check(
        image.mode in (*_GREY, *_COLOUR),
        f"its pixels are of the kind {image.mode}, which is not read; save it as grey or RGB",
    )
    mode = "L" if image.mode in _GREY else "RGB"
    if not _is_transparent(image):
        return image if image.mode == mode else image.convert(mode)
    canvas = Image.new("RGBA", image.size, (LEVELS[background],) * 3 + (255,))
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert(mode)


def _is_transparent(image: Image.Image) -> bool:
    try:
        transparent = image.has_transparency_data
    except AssertionError:  # a damaged file has no palette
        return False
    if transparent and image.format == "BMP":  # many programs write zeros to the fourth channel, which viewers ignore
        return image.getextrema()[-1] != (0, 0)
    return transparent


def _add_heif() -> None:
    """Makes Pillow read HEIF and HEIC by pillow-heif, where that is installed."""
    if "HEIF" in Image.OPEN:
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise ValueError(
            "it is an image in HEIC or HEIF, which needs pillow-heif (pip install 'starflow-jax[heif]')"
        ) from error
