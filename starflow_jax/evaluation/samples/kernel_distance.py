"""KID: the squared maximum mean discrepancy of features under a polynomial kernel, without bias.

(Bińkowski et al., "Demystifying MMD GANs", arXiv 1801.01401: degree 3, averaged over random subsets.) Unlike FID its
expectation does not depend on the number of samples.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.evaluation.samples.moments import checked_features

SUBSETS, SUBSET_SIZE = 100, 1000
_DEGREE = 3


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """KID over subsets.

    Attributes:
      mean: may be a little below 0 for equal distributions, as an estimate without bias must; std: over subsets.
      subsets, size: how many, of how many vectors of each set.
    """

    mean: float
    std: float
    subsets: int
    size: int


def kernel_distance(
    one: np.ndarray, other: np.ndarray, *, seed: int = 0, subsets: int = SUBSETS, size: int = SUBSET_SIZE
) -> KernelDistance:
    """KID of vectors [n, d] and [m, d].

    Args:
      seed: of the subsets, drawn without replacement inside each.
      size: of a subset; smaller sets are taken whole.

    Raises:
      ValueError: features that are none, of two widths, or fewer than two.
    """
    one, other = checked_features(one), checked_features(other)
    check_integer("subsets", subsets, minimum=1)
    check_integer("size", size, minimum=2)
    size = min(size, len(one), len(other))
    check(size > 1, f"KID needs at least 2 vectors of each set, got {len(one)} and {len(other)}")
    random = np.random.default_rng(seed)
    drawn = [
        squared_discrepancy(*(some[random.choice(len(some), size, replace=False)] for some in (one, other)))
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(drawn)), float(np.std(drawn)), subsets, size)


def squared_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of MMD^2 from all of x [n, d] and y [m, d] under (x.y / d + 1)^3.

    Raises:
      ValueError: features of two widths.
    """
    check(x.shape[1] == y.shape[1], f"features must have one width, got {x.shape[1]} and {y.shape[1]}")

    def within(a: np.ndarray) -> float:
        kernel = _kernel(a, a)
        return float((kernel.sum() - np.trace(kernel)) / (len(a) * (len(a) - 1)))

    return within(x) + within(y) - 2.0 * float(_kernel(x, y).mean())


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1.0) ** _DEGREE
