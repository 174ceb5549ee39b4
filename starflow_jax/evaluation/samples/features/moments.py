"""Mean and covariance of features in float64, accumulated over parts of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from starflow_jax.core.config.checks import check

# Vectors whose moments are computed together: adding two moments costs O(d^2), as much as some hundred vectors.
GROUP = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """The first two moments of a set of vectors.

    The second moment is about the mean (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", 1979), so that a large mean does not cancel digits as in a plain sum of squares.

    Attributes:
      count: number of vectors; mean: float64 [d]; scatter: float64 [d, d], the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def from_features(cls, features: np.ndarray) -> Moments:
        """The moments of vectors [n, d], n above 0.

        Raises:
          ValueError: an invalid shape, no vectors, or values that are not finite.
        """
        features = checked_features(features)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """The moments of the union of both sets."""
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


class RunningMoments:
    """Moments of parts that are added one by one, computed in groups of at least `GROUP` vectors except the last."""

    def __init__(self, known: Moments | None = None) -> None:
        self._known = known
        self._pending: list[np.ndarray] = []

    def add(self, part: np.ndarray) -> None:
        """Adds vectors [n, d]; raises ValueError for some that `checked_features` rejects, here or later."""
        part = np.asarray(part)
        if self._pending and part.shape[1:] != self._pending[0].shape[1:]:
            self._join()
        self._pending.append(part)
        if part.ndim == 0 or sum(map(len, self._pending)) >= GROUP:  # `checked_features` rejects a number
            self._join()

    @property
    def joined(self) -> Moments | None:
        """The moments of all vectors at the end of a group, None within one."""
        return None if self._pending else self._known

    def total(self) -> Moments:
        """The moments of all vectors; ValueError where there are none."""
        if self._pending:
            self._join()
        if self._known is None:
            raise ValueError("features must come in at least one part, got none")
        return self._known

    def _join(self) -> None:
        group = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self._pending = []
        moments = Moments.from_features(group)
        self._known = moments if self._known is None else self._known + moments


def total_moments(parts: Iterable[np.ndarray]) -> Moments:
    """The moments of all vectors of parts [n, d], which are read one by one and not stored.

    Raises:
      ValueError: no parts, or a part that `checked_features` rejects.
    """
    moments = RunningMoments()
    for part in parts:
        moments.add(part)
    return moments.total()


def checked_features(features: np.ndarray) -> np.ndarray:
    """Vectors [n, d] as float64; raises ValueError for an invalid shape, no vectors, or values that are not finite."""
    features = np.asarray(features, np.float64)
    check(
        features.ndim == 2 and 0 not in features.shape,
        f"features must be [n, d], both above 0, got {list(features.shape)}",
    )
    bad = int(np.count_nonzero(~np.isfinite(features)))
    check(bad == 0, f"features must be finite, got {bad} values that are not")
    return features
