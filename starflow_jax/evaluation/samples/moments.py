"""Mean and covariance of features that come in parts, in float64; parts add up in any grouping."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from starflow_jax.core.config.checks import check

# Vectors whose moments are computed together: adding two sets up costs d^2, as much as some hundred vectors do.
GROUP = 1024


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
    for group in _grouped(parts):
        own = Moments.of(group)
        found = own if found is None else found + own
    if found is None:
        raise ValueError("features must come in at least one part, got none")
    return found


def _grouped(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The parts joined to `GROUP` vectors or more, the last of what is left; those of another width apart."""
    waiting: list[np.ndarray] = []
    for part in map(np.asarray, parts):
        if waiting and part.shape[1:] != waiting[0].shape[1:]:
            yield np.concatenate(waiting)
            waiting = []
        if part.ndim == 0:  # cannot be joined; who reads it refuses it
            yield part
            continue
        waiting.append(part)
        if sum(map(len, waiting)) >= GROUP:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


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
