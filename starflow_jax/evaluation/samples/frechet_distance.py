"""The Fréchet distance of two Gaussians: FID on features of pictures, FVD on features of clips.

    d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)

(Dowson and Landau, "The Fréchet Distance between Multivariate Normal Distributions", 1982; Heusel et al., arXiv
1706.08500; Unterthiner et al., arXiv 1812.01717.)
"""

from __future__ import annotations

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.evaluation.samples.moments import Moments


def frechet_distance(one: Moments, other: Moments) -> float:
    """The squared distance d^2, which is what FID and FVD report; 0 for equal moments, never below.

    With C = F F^T the trace is the sum of the singular values of F1^T F2. F is from a symmetric eigendecomposition,
    eigenvalues below rounding left out. Unlike a root of the product C1 C2, which is not symmetric, that exists for
    singular covariances too: with fewer vectors than dimensions, or features that never move.

    Raises:
      ValueError: features of two widths, or fewer than two vectors.
    """
    check(
        one.mean.shape == other.mean.shape,
        f"features must have one width, got {len(one.mean)} and {len(other.mean)}",
    )
    first, second = one.covariance, other.covariance
    shared = np.linalg.svd(_factor(first).T @ _factor(second), compute_uv=False).sum()
    apart = one.mean - other.mean
    return max(0.0, float(apart @ apart + np.trace(first) + np.trace(second) - 2.0 * shared))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [d, rank] with F F^T the covariance; of rank 0, one column of zeros."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2.0)
    # The root of what is rounding of a zero would be a hundred million times larger than the rounding.
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    kept[-1] = True
    return vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))
