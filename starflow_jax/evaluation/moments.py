"""Mean and covariance of features that come in parts, in float64; parts add up in any grouping."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from starflow_jax.config.checks import check


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """The first two moments of a set of vectors.

    Kept about the set's own mean (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", 1979), so that a large mean costs no digits, as it does in a plain sum of squares.

    Attributes:
      count: vectors; mean: float64 [d]; scatter: float64 [d, d], the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Of vectors [n, d], n above 0.

        Raises:
          ValueError: another shape, or values that are not finite.
        """
        features = checked_features(features)
        mean = features.mean(axis=0)
        apart = features - mean
        return cls(len(features), mean, apart.T @ apart)

    def __add__(self, other: Moments) -> Moments:
        """Of both sets together."""
        check(
            self.mean.shape == other.mean.shape,
            f"features must have one width, got {len(self.mean)} and {len(other.mean)}",
        )
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    @property
    def covariance(self) -> np.ndarray:
        """float64 [d, d], unbiased: the scatter over count - 1. Raises ValueError for fewer than two vectors."""
        check(self.count > 1, f"a covariance needs at least 2 vectors, got {self.count}")
        return self.scatter / (self.count - 1)


def total_moments(parts: Iterable[np.ndarray]) -> Moments:
    """Of all vectors of parts [n, d], which are read one after another and not kept.

    Raises:
      ValueError: no part, or a bad one.
    """
    found: Moments | None = None
    for part in parts:
        own = Moments.of(part)
        found = own if found is None else found + own
    if found is None:
        raise ValueError("features must come in at least one part, got none")
    return found


def checked_features(features: np.ndarray) -> np.ndarray:
    """float64 of vectors [n, d]; raises ValueError for another shape, none, or values that are not finite."""
    features = np.asarray(features, np.float64)
    check(
        features.ndim == 2 and 0 not in features.shape,
        f"features must be [n, d], neither of them 0, got {list(features.shape)}",
    )
    bad = int(np.count_nonzero(~np.isfinite(features)))
    check(bad == 0, f"features must be finite, got {bad} values that are not")
    return features
