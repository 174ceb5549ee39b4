"""Pictures of a folder for a page: decoded, made small where they are large, and embedded."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from starflow_jax.core.html_page import escaped, html_picture
from starflow_jax.core.regular_files import open_file
from starflow_jax.media.displayed_images import displayed, open_image

MOST_PICTURES = 12
_MOST_SIDE = 720  # pixels
_MOST_PNG_BYTES = 300_000  # larger ones are stored as JPEG
_SAMPLES = re.compile(r"samples_([0-9]{1,18})\.png")


def sample_grids(workdir: Path) -> list[tuple[int, Path]]:
    """The steps and files `samples_STEP.png` of a run, by step."""
    matches = ((_SAMPLES.fullmatch(path.name), path) for path in workdir.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match is not None)


def spread(items: Sequence[tuple[int, Path]], most: int = MOST_PICTURES) -> list[tuple[int, Path]]:
    """At most `most` (at least 2) of the items at even distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def picture_figure(path: Path, title: str) -> str:
    """An image file as a figure of a page, or a sentence that says why it cannot be shown.

    The file is untrusted: it is decoded with bounds on its size and written anew, as a PNG or JPEG file of at most 720
    pixels a side. Of an animation the first frame is shown.
    """
    try:
        data, media_type = _encoded(path)
    except Exception as error:  # decoders raise many kinds of errors on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"<figure><strong>{escaped(title)}</strong><p>{escaped(f'{path.name}: {reason}')}</p></figure>"
    return f"<figure><strong>{escaped(title)}</strong><br>{html_picture(data, path.name, media_type)}</figure>"


def _encoded(path: Path) -> tuple[bytes, str]:
    with open_file(path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on sizes that `open_image` checks and on odd metadata
        with open_image(stream) as image:
            pixels = displayed(image)
    pixels.thumbnail((_MOST_SIDE, _MOST_SIDE))
    return png_or_jpeg(pixels, _MOST_PNG_BYTES, optimize=True)


def png_or_jpeg(pixels: Image.Image, most_png: int, *, optimize: bool = False) -> tuple[bytes, str]:
    """An image, grey or RGB, as the bytes of a file and their media type: PNG, or JPEG where that has above `most_png`
    bytes; `optimize`: takes longer for a smaller PNG."""
    data = io.BytesIO()
    pixels.save(data, format="PNG", optimize=optimize)
    if data.tell() <= most_png:
        return data.getvalue(), "image/png"
    data = io.BytesIO()
    pixels.save(data, format="JPEG", quality=90)
    return data.getvalue(), "image/jpeg"
