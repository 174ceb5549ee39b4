"""KID: the unbiased estimate of the squared maximum mean discrepancy of features under a polynomial kernel.

(Bińkowski et al., "Demystifying MMD GANs", arXiv 1801.01401: degree 3, averaged over random subsets.) Unlike FID its
expectation does not depend on the number of samples.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.registries import METRICS
from starflow_jax.evaluation.samples.features.feature_statistics import FeatureStatistics
from starflow_jax.evaluation.samples.features.moments import checked_features
from starflow_jax.evaluation.samples.metrics.metric import Column

SUBSETS, SUBSET_SIZE = 100, 1000
_DEGREE = 3


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """KID over subsets.

    Attributes:
      mean: slightly negative values are possible for equal distributions, since the estimate is unbiased.
      std: standard deviation over subsets.
      subsets, size: number of subsets, and the number of vectors of each set in a subset.
    """

    mean: float
    std: float
    subsets: int
    size: int


def kernel_distance(
    first: np.ndarray, second: np.ndarray, *, seed: int = 0, subsets: int = SUBSETS, size: int = SUBSET_SIZE
) -> KernelDistance:
    """KID of vectors [n, d] and [m, d].

    Args:
      seed: of the random subsets, each sampled without replacement.
      size: vectors in a subset; a smaller set is used whole.

    Raises:
      ValueError: empty features, features of two widths, or fewer than two.
    """
    first, second = checked_features(first), checked_features(second)
    check_integer("subsets", subsets, minimum=1)
    check_integer("size", size, minimum=2)
    size = min(size, len(first), len(second))
    check(size > 1, f"KID needs at least 2 vectors of each set, got {len(first)} and {len(second)}")
    random = np.random.default_rng(seed)
    estimates = [
        squared_discrepancy(*(x[random.choice(len(x), size, replace=False)] for x in (first, second)))
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(estimates)), float(np.std(estimates)), subsets, size)


def squared_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD^2 from all of x [n, d] and y [m, d] under (x.y / d + 1)^3.

    Raises:
      ValueError: features of two widths.
    """
    check(x.shape[1] == y.shape[1], f"features must have one width, got {x.shape[1]} and {y.shape[1]}")

    def mean_off_diagonal(a: np.ndarray) -> float:
        kernel = _kernel(a, a)
        return float((kernel.sum() - np.trace(kernel)) / (len(a) * (len(a) - 1)))

    return mean_off_diagonal(x) + mean_off_diagonal(y) - 2.0 * float(_kernel(x, y).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1.0) ** _DEGREE


@METRICS.register("kid", title="KID", better="lower", columns=(Column("kid", "KID", ".5f", "kid_std", "± subsets"),))
def kid(samples: FeatureStatistics, real: FeatureStatistics) -> dict[str, float]:
    """The kernel distance of the features and its standard deviation over subsets."""
    distance = kernel_distance(samples.features, real.features)
    return {"kid": distance.mean, "kid_std": distance.std}
