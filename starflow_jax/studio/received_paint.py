"""What visitors paint, between its arrival and the request that uses it: bounded in number, bytes and pixels."""

from __future__ import annotations

import collections
import io
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from starflow_jax.core.config.checks import check

SIDE = 384  # pixels of the picture that is painted on, about
MOST_LAYERS = 4  # of one painting
_CANVAS = 800  # pixels of a side before there is a picture
_DENSITY = 2  # pixels that a browser may paint for one of the picture, along a side
_PIXEL_BYTES = 5  # of the picture behind the paint, which a browser sends too: at worst four, and a bit
_MOST_PAINTINGS = 64  # that wait at once
_MOST_BYTES = 2**26  # of all that wait
_LONGEST_NAME = 64
_FORMATS = ("PNG", "WEBP")  # in which browsers write a canvas


def most_side(rows: int, columns: int) -> int:
    """Rows or columns that a painting on pictures of a size may have."""
    return _DENSITY * _side(rows, columns)


def most_bytes(rows: int, columns: int) -> int:
    """Bytes of a file that a canvas with pictures of a size sends."""
    return min(_PIXEL_BYTES * _side(rows, columns) ** 2, _MOST_BYTES)


def _side(rows: int, columns: int) -> int:
    return max(_CANVAS, SIDE, rows, columns)


class ReceivedPaint:
    """Paintings that wait for their request, each under a name that the browser has invented.

    Nothing that arrives is trusted: layers beyond the bounds are dropped, and so are the oldest paintings once there
    are too many. Safe for several threads.

    Attributes:
      most_side: rows or columns of a layer.
    """

    def __init__(self, most_side: int):
        self.most_side = most_side
        self._lock = threading.Lock()
        self._waiting: collections.OrderedDict[str, dict[int, bytes]] = collections.OrderedDict()

    def add(self, name: Any, index: Any, data: Any) -> bool:
        """Keeps one layer, an image file, in place of an earlier one of the same index; returns whether it was kept.

        Args:
          name: of the painting, at most 64 characters; index: of the layer, 0 to 3, as an integer or in digits.
        """
        digits = str(index)
        if not (isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and isinstance(data, bytes)):
            return False
        if not (len(digits) == 1 and digits in "0123456789" and int(digits) < MOST_LAYERS and len(data) <= _MOST_BYTES):
            return False
        with self._lock:
            self._waiting.setdefault(name, {})[int(digits)] = data
            self._waiting.move_to_end(name)
            while len(self._waiting) > _MOST_PAINTINGS or self._bytes() > _MOST_BYTES:
                self._waiting.popitem(last=False)
            return name in self._waiting

    def take(self, name: Any) -> np.ndarray | None:
        """Where a painting has paint, uint8 [h, w], 0 for none, after which it is forgotten; None for no painting.

        Raises:
          ValueError: a layer that is no PNG or WebP, is damaged, is larger than the canvas, or layers of several sizes.
        """
        with self._lock:
            layers = self._waiting.pop(name, {}) if isinstance(name, str) else {}
        return opacity(list(layers.values()), self.most_side)

    def _bytes(self) -> int:
        return sum(len(data) for layers in self._waiting.values() for data in layers.values())


def opacity(layers: Sequence[bytes | Path], most_side: int) -> np.ndarray | None:
    """Where any of some layers has paint, uint8 [h, w], 0 for none; None for no layers.

    Args:
      layers: image files, at most 4; most_side: rows or columns that they may have.

    Raises:
      ValueError: more layers, or as `ReceivedPaint.take`.
    """
    check(len(layers) <= MOST_LAYERS, f"a painting must have at most {MOST_LAYERS} layers, got {len(layers)}")
    alphas = [_alpha(layer, most_side) for layer in layers]
    check(len({alpha.shape for alpha in alphas}) <= 1, "the layers of a painting must have one size")
    return np.max(alphas, axis=0) if alphas else None


def _alpha(layer: bytes | Path, most_side: int) -> np.ndarray:
    """The opacity of an image file, uint8 [h, w]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(layer) if isinstance(layer, bytes) else layer, formats=_FORMATS) as image:
                columns, rows = image.size  # known before anything is decoded
                check(
                    max(rows, columns) <= most_side,
                    f"a painting must have at most {most_side} rows and columns, got {rows} x {columns}",
                )
                return np.asarray(image.convert("RGBA").getchannel("A"))
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError("the painting cannot be read: it must be a PNG or WebP image") from error
