"""The Fréchet distance of two Gaussians: FID on features of images, FVD on features of clips.

    d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)

(Dowson and Landau, "The Fréchet Distance between Multivariate Normal Distributions", 1982; Heusel et al., arXiv
1706.08500; Unterthiner et al., arXiv 1812.01717.)
"""

from __future__ import annotations

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import METRICS
from starflow_jax.evaluation.samples.features.feature_statistics import FeatureStatistics
from starflow_jax.evaluation.samples.features.moments import Moments
from starflow_jax.evaluation.samples.metrics.metric import Column


def frechet_distance(first: Moments, second: Moments) -> float:
    """The squared distance d^2, which FID and FVD report; never negative, and 0 for equal moments.

    With C = F F^T the trace is the sum of the singular values of F1^T F2. F comes from a symmetric eigendecomposition
    in which eigenvalues below rounding are dropped. Unlike a square root of the product C1 C2, which is not symmetric,
    it also exists for singular covariances, which occur with fewer vectors than dimensions or constant features.

    Raises:
      ValueError: features of two widths, or fewer than two vectors.
    """
    check(
        first.mean.shape == second.mean.shape,
        f"features must have one width, got {len(first.mean)} and {len(second.mean)}",
    )
    covariance, other = first.covariance, second.covariance
    shared = np.linalg.svd(_factor(covariance).T @ _factor(other), compute_uv=False).sum()
    difference = first.mean - second.mean
    return max(0.0, float(difference @ difference + np.trace(covariance) + np.trace(other) - 2.0 * shared))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F [d, rank] with F F^T equal to the covariance; one column of zeros for rank 0."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2.0)
    # The square root of a rounded zero would be 1e8 times larger than the rounding error.
    nonzero = values > values[-1] * len(values) * np.finfo(np.float64).eps
    nonzero[-1] = True
    return vectors[:, nonzero] * np.sqrt(np.maximum(values[nonzero], 0.0))


@METRICS.register("fid", title="FID", better="lower", columns=(Column("fid", "FID", ".3f"),))
def fid(samples: FeatureStatistics, real: FeatureStatistics) -> dict[str, float]:
    """The Fréchet distance of the features' moments."""
    return {"fid": frechet_distance(samples.moments, real.moments)}
