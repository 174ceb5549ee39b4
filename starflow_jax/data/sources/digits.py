"""Handwritten digits: 1,797 grey images of 8x8 pixels that ship with scikit-learn, so nothing is downloaded.

A pixel is an ink count from 0 to 16, hence 17 levels. With the dequantisation of `data.dequantise` bits/dim
are in units of that count: a uniform density scores log2(17) = 4.09.

The split into 1,437 training and 360 test images depends on the pixels and labels alone, not on a random
number generator nor on the order in which a library returns them (see `every_fifth`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Literal

import numpy as np

from starflow_jax.core.config.checks import check_integer
from starflow_jax.data.sources.base import ArraySource


def digits(split: Literal["train", "test", "all"] = "train", enlarge: int = 1) -> ArraySource:
    """The digits of one split: images uint8 [n, 8 e, 8 e, 1] with values 0..16, labels 0..9.

    Args:
      split: "train" (1,437 images), "test" (360) or "all" (1,797).
      enlarge: e >= 1, how many times more rows and columns (linear interpolation, rounded); for longer sequences.

    Raises:
      ValueError: another split, or an enlargement below 1.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split must be 'train', 'test' or 'all', got {split!r}.")
    check_integer("enlarge", enlarge, minimum=1)
    source = _all_digits()
    # The split belongs to the original pixels: an image and its enlargement are on the same side.
    if split != "all":
        rest, chosen = every_fifth(source)
        source = source.subset(chosen if split == "test" else rest, f"digits-{split}")
    if enlarge == 1:
        return source
    return dataclasses.replace(source, images=_enlarged(source.images, enlarge))


def every_fifth(source: ArraySource) -> tuple[np.ndarray, np.ndarray]:
    """Splits a source four to one, every class alike, by a rule that has no state.

    Examples are ordered by class and, within a class, by the SHA-256 of their pixel bytes, which is as good
    as shuffled; places 0, 5, 10, ... of that order are chosen. Used for the test set, and again on the
    training set where a part of it must choose between models.

    Returns:
      `(rest, chosen)`: increasing indices into `source`, int64, together all of them.
    """
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in source.images]
    order = sorted(range(len(source)), key=lambda index: (int(source.labels[index]), hashes[index]))
    chosen = np.sort(np.asarray(order[::5], np.int64))
    return np.setdiff1d(np.arange(len(source)), chosen), chosen


def _enlarged(images: np.ndarray, factor: int) -> np.ndarray:
    """Rows and columns `factor` times as many, by linear interpolation between pixel centres (borders repeat)."""
    side = images.shape[1]
    centres = (np.arange(side * factor) + 0.5) / factor - 0.5
    weights = np.stack([np.interp(centres, np.arange(side), unit) for unit in np.eye(side)], axis=1)
    return np.rint(np.einsum("ai,nijc,bj->nabc", weights, images, weights, optimize=True)).astype(np.uint8)


@functools.cache
def _all_digits() -> ArraySource:
    # Importing scikit-learn takes a second, which only those who ask for digits should wait for.
    from sklearn.datasets import load_digits

    data = load_digits()
    images = data.images.astype(np.uint8)[..., None]
    labels = data.target.astype(np.int32)
    for array in (images, labels):
        array.flags.writeable = False  # shared by every caller
    return ArraySource("digits", images, labels, levels=17, num_classes=10)
