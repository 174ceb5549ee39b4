"""Crops of ten photographs that ship with scikit-image and scikit-learn, so nothing is downloaded.

Every photograph is resized to two sizes and cut into overlapping crops. The last fifth of its columns is held out for
the test set, so that no pixel of a test crop is trained on. The label of a crop is the index of its photograph.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from starflow_jax.core.choices import Split, choices
from starflow_jax.core.config.checks import check, check_choice, check_integer
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.data.sources.source_request import SourceRequest

SCIKIT_IMAGE = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
# The shorter side of a resized photograph, in sides of a crop.
_SIDES = (6, 10)
_TRAIN_SHARE = 0.8


@SOURCES.register("photos")
def open_photos(config: SourceConfig, request: SourceRequest) -> ArraySource:
    """The crops, of the size flow.image_size.

    Raises:
      ValueError: there is no flow, or its images are too small or too large.
    """
    check(request.flow is not None, "data.source 'photos' needs a flow, whose image_size says how large a crop is")
    assert request.flow is not None
    return photos(request.split, request.flow.image_shape, request.channels(config))


def photos(split: str, size: tuple[int, int], channels: int = 3) -> ArraySource:
    """The crops of one split, uint8 [n, H, W, channels], labels 0 .. 9.

    Args:
      split: "train" or "test".
      size: rows and columns H, W of a crop, at most 128.
      channels: 3 for RGB, 1 for grey.

    Raises:
      ValueError: an invalid split, size or number of channels.
    """
    check_choice("split", split, choices(Split))
    check_choice("channels", channels, (1, 3))
    for side in size:
        check_integer("size of photos", side, minimum=4)
        check(side <= 128, f"size of photos must be at most 128, got {side}")
    crops, labels = [], []
    for label, photograph in enumerate(_photographs()):
        for sides in _SIDES:
            image = _resized(photograph, sides * max(size), channels)
            border = int(image.shape[1] * _TRAIN_SHARE)
            part = image[:, :border] if split == "train" else image[:, border:]
            windows = _crops(part, size)
            crops.append(windows)
            labels.append(np.full(len(windows), label, np.int32))
    return ArraySource(f"photos-{split}", np.concatenate(crops), np.concatenate(labels), 256, len(SCIKIT_IMAGE) + 3)


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
    """uint8 [rows, columns, 3] of different sizes."""
    # These take a second to import, so they are imported on first use.
    import skimage.data
    from sklearn.datasets import load_sample_image

    photographs = [getattr(skimage.data, name)() for name in SCIKIT_IMAGE]
    photographs += [
        skimage.data.stereo_motorcycle()[0],
        load_sample_image("china.jpg"),
        load_sample_image("flower.jpg"),
    ]
    for photograph in photographs:
        photograph.flags.writeable = False  # shared by all callers
    return tuple(photographs)


def _resized(photograph: np.ndarray, short: int, channels: int) -> np.ndarray:
    """The photograph resized to a shorter side of `short` pixels."""
    image = Image.fromarray(photograph).convert("L" if channels == 1 else "RGB")
    factor = short / min(image.size)
    columns, rows = (max(short, round(side * factor)) for side in image.size)
    return np.asarray(image.resize((columns, rows), Image.Resampling.LANCZOS)).reshape(rows, columns, channels)


def _crops(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """All crops with a stride of half their size, uint8 [n, H, W, C]."""
    height, width = size
    windows = np.lib.stride_tricks.sliding_window_view(image, (height, width), axis=(0, 1))
    strided = windows[:: max(height // 2, 1), :: max(width // 2, 1)]
    return np.ascontiguousarray(np.moveaxis(strided, 2, -1)).reshape(-1, height, width, image.shape[2])
