"""Code length of images in bits under a universal code of small integers, which needs no training.

A code of Krichevsky and Trofimov (1981) predicts every symbol by (count so far + 1/2) / (symbols so far + levels / 2).
Its length depends on the final counts alone. It codes the pixels as they are or the differences of neighbours in a row,
whichever is shorter, plus one bit for the choice: simple images take few bits, noise takes log2(levels) a pixel. This
is the complexity that Serra et al. (arXiv 1909.11480) subtract from likelihoods, without headers, which would be longer
than these small images.
"""

from __future__ import annotations

import math

import numpy as np

from starflow_jax.core.config.checks import check, check_integer


def code_lengths(images: np.ndarray, levels: int) -> np.ndarray:
    """Bits of every image, float64 [n].

    Args:
      images: integers [n, H, W, C] in 0 .. levels - 1.
      levels: values that a pixel can take, at least 2.

    Raises:
      ValueError: an invalid shape, or values out of range.
    """
    images = np.asarray(images)
    check_integer("levels", levels, minimum=2)
    check(images.ndim == 4 and images.size > 0, f"images must be [n, H, W, C], all above 0, got {images.shape}")
    check(
        bool(np.issubdtype(images.dtype, np.integer)) and int(images.min()) >= 0 and int(images.max()) < levels,
        f"images must be integers from 0 to {levels - 1}, got {images.dtype} from {images.min()} to {images.max()}",
    )
    plain = images.astype(np.int64).reshape(len(images), -1)
    # Lossless: the first pixel and the differences modulo the number of levels determine the row.
    steps = np.mod(np.diff(images.astype(np.int64), axis=2, prepend=0), levels)
    return 1.0 + np.minimum(_adaptive(plain, levels), _adaptive(steps.reshape(len(images), -1), levels))


def _adaptive(symbols: np.ndarray, levels: int) -> np.ndarray:
    """Bits of rows of symbols [n, D] by the adaptive code, float64 [n]."""
    offsets = np.arange(len(symbols))[:, None] * levels
    counts = np.bincount((symbols + offsets).ravel(), minlength=len(symbols) * levels).reshape(len(symbols), levels)
    length = symbols.shape[1]
    # log of the product of (k + 1/2) for k below each count.
    products = np.asarray([math.lgamma(count + 0.5) - math.lgamma(0.5) for count in range(length + 1)])
    nats = math.lgamma(length + levels / 2) - math.lgamma(levels / 2) - products[counts].sum(axis=1)
    return np.asarray(nats / math.log(2.0))
