"""Sums of class probabilities by split, from which the Inception Score is computed."""

from __future__ import annotations

import dataclasses

import numpy as np

from starflow_jax.core.config.checks import check

SPLITS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums over a set of samples, by split; the sums of two sets add up.

    Attributes:
      count: float64 [s], number of samples; certainty: float64 [s], sums of sum_y p log p; probability: float64
        [s, classes], sums of p.
    """

    count: np.ndarray
    certainty: np.ndarray
    probability: np.ndarray

    @classmethod
    def from_logits(cls, logits: np.ndarray, split: np.ndarray, num_splits: int = SPLITS) -> ClassSums:
        """The sums over samples with logits [n, classes], each in one split, int [n] of `0 .. num_splits - 1`.

        Raises:
          ValueError: incompatible shapes, a split out of range, or logits that are not finite.
        """
        logits, split = np.asarray(logits, np.float64), np.asarray(split)
        check(
            logits.ndim == 2 and logits.shape[1] > 1 and split.shape == logits.shape[:1],
            f"logits must be [n, classes] with a split for each of n, got {list(logits.shape)} and {list(split.shape)}",
        )
        check(bool(np.isfinite(logits).all()), "logits must be finite, got some that are not")
        check(
            len(split) == 0 or (split.min() >= 0 and split.max() < num_splits),
            f"split must be 0 to {num_splits - 1}, got others",
        )
        log_p = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        rows = np.eye(num_splits)[split]  # [n, s]
        return cls(rows.sum(axis=0), rows.T @ (p * log_p).sum(axis=1), rows.T @ p)

    def __add__(self, other: ClassSums) -> ClassSums:
        """The sums over the union of both sets."""
        return ClassSums(
            self.count + other.count, self.certainty + other.certainty, self.probability + other.probability
        )


def split_index(index: np.ndarray, total: int, num_splits: int = SPLITS) -> np.ndarray:
    """The split of samples with indices in 0 .. total - 1, int64; splits are contiguous and of equal size up to one."""
    return np.asarray(index, np.int64) * num_splits // total
