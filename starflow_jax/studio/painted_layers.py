"""What a visitor has painted: layers that a browser uploads, whose number and size are checked before decoding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from starflow_jax.core.config.checks import check

SIDE = 384  # pixels of the picture that is painted on, about
MOST_LAYERS = 4  # of one painting
_CANVAS = 800  # pixels of a side before there is a picture
_DENSITY = 2  # pixels that a browser may paint for one of the picture, along a side
_FORMATS = ("PNG", "WEBP")  # in which browsers write a canvas


def most_side(rows: int, columns: int) -> int:
    """Rows or columns that a painting on pictures of a size may have."""
    return _DENSITY * max(_CANVAS, SIDE, rows, columns)


def opacity(layers: Sequence[Path], most: int) -> np.ndarray | None:
    """Where any of some layers has paint, uint8 [h, w], 0 for none; None for no layers.

    Args:
      layers: image files, at most 4; most: rows or columns that they may have.

    Raises:
      ValueError: more layers, layers of several sizes, or one that is no PNG or WebP, is damaged or is larger.
    """
    check(len(layers) <= MOST_LAYERS, f"a painting must have at most {MOST_LAYERS} layers, got {len(layers)}")
    alphas = [_alpha(layer, most) for layer in layers]
    check(len({alpha.shape for alpha in alphas}) <= 1, "the layers of a painting must have one size")
    return np.max(alphas, axis=0) if alphas else None


def _alpha(layer: Path, most: int) -> np.ndarray:
    """The opacity of an image file, uint8 [h, w]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(layer, formats=_FORMATS) as image:
                columns, rows = image.size  # known before anything is decoded
                check(
                    max(rows, columns) <= most,
                    f"a painting must have at most {most} rows and columns, got {rows} x {columns}",
                )
                return np.asarray(image.convert("RGBA").getchannel("A"))
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError("the painting cannot be read: it must be a PNG or WebP image") from error
