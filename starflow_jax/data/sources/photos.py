"""Pieces of ten photographs that ship with scikit-image and scikit-learn, so nothing is downloaded.

Every photograph is shrunk to two sizes, and cut into overlapping pieces. The last fifth of its columns is kept for the
test set, so that no pixel of a test piece is trained on. The label of a piece is the number of its photograph.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from starflow_jax.core.choices import Split, choices
from starflow_jax.core.config.checks import check, check_choice, check_integer
from starflow_jax.data.sources.base import ArraySource

SCIKIT_IMAGE = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
# The shorter side of a shrunken photograph, in sides of a piece.
_SIDES = (6, 10)
_TRAINED = 0.8


def photos(split: str, size: tuple[int, int], channels: int = 3) -> ArraySource:
    """The pieces of one split, uint8 [n, H, W, channels], labels 0 .. 9.

    Args:
      split: "train" or "test".
      size: rows and columns H, W of a piece, at most 128.
      channels: 3 for RGB, 1 for grey.

    Raises:
      ValueError: another split, size or number of channels.
    """
    check_choice("split", split, choices(Split))
    check_choice("channels", channels, (1, 3))
    for side in size:
        check_integer("size of photos", side, minimum=4)
        check(side <= 128, f"size of photos must be at most 128, got {side}")
    pieces, labels = [], []
    for label, photograph in enumerate(_photographs()):
        for sides in _SIDES:
            image = _shrunk(photograph, sides * max(size), channels)
            border = int(image.shape[1] * _TRAINED)
            part = image[:, :border] if split == "train" else image[:, border:]
            cut = _pieces(part, size)
            pieces.append(cut)
            labels.append(np.full(len(cut), label, np.int32))
    return ArraySource(f"photos-{split}", np.concatenate(pieces), np.concatenate(labels), 256, len(SCIKIT_IMAGE) + 3)


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
    """uint8 [rows, columns, 3] of different sizes."""
    # Importing these takes a second, which only those who ask for photographs should wait for.
    import skimage.data
    from sklearn.datasets import load_sample_image

    found = [getattr(skimage.data, name)() for name in SCIKIT_IMAGE]
    found += [skimage.data.stereo_motorcycle()[0], load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    for photograph in found:
        photograph.flags.writeable = False  # shared by every caller
    return tuple(found)


def _shrunk(photograph: np.ndarray, short: int, channels: int) -> np.ndarray:
    """Made smaller, or larger, until its shorter side is `short`."""
    image = Image.fromarray(photograph).convert("L" if channels == 1 else "RGB")
    factor = short / min(image.size)
    columns, rows = (max(short, round(side * factor)) for side in image.size)
    return np.asarray(image.resize((columns, rows), Image.Resampling.LANCZOS)).reshape(rows, columns, channels)


def _pieces(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """All pieces at steps of half a piece."""
    height, width = size
    windows = np.lib.stride_tricks.sliding_window_view(image, (height, width), axis=(0, 1))
    chosen = windows[:: max(height // 2, 1), :: max(width // 2, 1)]
    return np.ascontiguousarray(np.moveaxis(chosen, 2, -1)).reshape(-1, height, width, image.shape[2])
