"""Handwritten digits: 1,797 grey images of 8x8 pixels that ship with scikit-learn, so nothing is downloaded.

A pixel is an ink count from 0 to 16, hence 17 levels. With the dequantisation of `data.decoding.dequantise`, bits/dim
are in units of that count: a uniform density scores log2(17) = 4.09.

The split into 1,437 training and 360 test images depends on the pixels and labels alone, and not on a random number
generator or on the order in which scikit-learn returns them (see `every_fifth`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from starflow_jax.core.config.checks import check_integer
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.data.sources.source_request import SourceRequest


@SOURCES.register("digits", levels=17, feature_network="digits")
def open_digits(config: SourceConfig, request: SourceRequest) -> ArraySource:
    """The digits, enlarged to a square flow.image_size that is a multiple of 8 (`check_source` refuses any other)."""
    rows, columns = (8, 8) if request.flow is None else request.flow.image_shape
    return digits(request.split, enlarge=rows // 8 if rows == columns and rows % 8 == 0 else 1)


def digits(split: Literal["train", "test", "all"] = "train", enlarge: int = 1) -> ArraySource:
    """The digits of one split: images uint8 [n, 8 e, 8 e, 1] with values 0..16, labels 0..9.

    Args:
      split: "train" (1,437 images), "test" (360) or "all" (1,797).
      enlarge: integer factor e >= 1 of rows and columns (linear interpolation, rounded), for longer sequences.

    Raises:
      ValueError: another split, or an enlargement below 1.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split must be 'train', 'test' or 'all', got {split!r}.")
    check_integer("enlarge", enlarge, minimum=1)
    source = _all_digits()
    # The split is computed from the original pixels, so that an image and its enlargement are in the same split.
    if split != "all":
        rest, chosen = every_fifth(source)
        source = source.subset(chosen if split == "test" else rest, f"digits-{split}")
    if enlarge == 1:
        return source
    return dataclasses.replace(source, images=_enlarged(source.images, enlarge))


def every_fifth(source: ArraySource) -> tuple[np.ndarray, np.ndarray]:
    """A deterministic, stratified split, four to one.

    Examples are ordered by class and, within a class, by the SHA-256 of their pixel bytes, which acts as a shuffle;
    positions 0, 5, 10, ... of that order are chosen. Used for the test set, and again on the training set where a
    validation set must choose between models.

    Returns:
      `(rest, chosen)`: increasing indices into `source`, int64, which together are all of them.
    """
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in source.images]
    order = sorted(range(len(source)), key=lambda index: (int(source.labels[index]), hashes[index]))
    chosen = np.sort(np.asarray(order[::5], np.int64))
    return np.setdiff1d(np.arange(len(source)), chosen), chosen


def _enlarged(images: np.ndarray, factor: int) -> np.ndarray:
    """Images enlarged by `factor`, with linear interpolation between pixel centres (borders repeat)."""
    side = images.shape[1]
    centres = (np.arange(side * factor) + 0.5) / factor - 0.5
    weights = np.stack([np.interp(centres, np.arange(side), unit) for unit in np.eye(side)], axis=1)
    return np.rint(np.einsum("ai,nijc,bj->nabc", weights, images, weights, optimize=True)).astype(np.uint8)


def _file_of_scikit_learn() -> Path:
    """The file that `sklearn.datasets.load_digits` reads: a row for each image, 64 pixels and the label.

    Importing scikit-learn for it would take two seconds, longer than all the rest of opening the data.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None  # a dependency of this package
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


@functools.cache
def _all_digits() -> ArraySource:
    rows = np.loadtxt(_file_of_scikit_learn(), delimiter=",", dtype=np.int32)
    images = rows[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = rows[:, -1].copy()
    for array in (images, labels):
        array.flags.writeable = False  # shared by all callers
    return ArraySource("digits", images, labels, levels=17, num_classes=10)
