"""The Inception Score: how sure a classifier is of every sample, and how varied its answers are.

    IS = exp( mean over samples of KL( p(y | x) || mean of p(y | x) ) )

(Salimans et al., arXiv 1606.03498), averaged over splits of the samples. Sums over samples are all that is kept.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from starflow_jax.core.config.checks import check

SPLITS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class ClassSums:
    """What the score needs of a set of samples, by split; two sets add up.

    Attributes:
      count: float64 [s], samples; certainty: float64 [s], sums of sum_y p log p; probability: float64 [s, classes],
        sums of p.
    """

    count: np.ndarray
    certainty: np.ndarray
    probability: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, split: np.ndarray, splits: int = SPLITS) -> ClassSums:
        """From logits [n, classes] of samples, each in one of the splits, int [n] of `0 .. splits - 1`.

        Raises:
          ValueError: shapes that do not go together, a split that does not exist, or logits that are not finite.
        """
        logits, split = np.asarray(logits, np.float64), np.asarray(split)
        check(
            logits.ndim == 2 and logits.shape[1] > 1 and split.shape == logits.shape[:1],
            f"logits must be [n, classes] with a split for each of n, got {list(logits.shape)} and {list(split.shape)}",
        )
        check(bool(np.isfinite(logits).all()), "logits must be finite, got some that are not")
        check(
            len(split) == 0 or (split.min() >= 0 and split.max() < splits),
            f"split must be 0 to {splits - 1}, got others",
        )
        log_p = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        rows = np.eye(splits)[split]  # [n, s]
        return cls(rows.sum(axis=0), rows.T @ (p * log_p).sum(axis=1), rows.T @ p)

    def __add__(self, other: ClassSums) -> ClassSums:
        """Of both sets together."""
        return ClassSums(
            self.count + other.count, self.certainty + other.certainty, self.probability + other.probability
        )


def split_of(places: np.ndarray, total: int, splits: int = SPLITS) -> np.ndarray:
    """The split of samples by their places 0 .. total - 1: as many neighbours in each, int64."""
    return np.asarray(places, np.int64) * splits // total


def inception_score(sums: ClassSums) -> tuple[float, float]:
    """The mean over splits, from 1 to the number of classes, and their standard deviation.

    Raises:
      ValueError: a split without samples.
    """
    check(bool((sums.count > 0).all()), f"every split must have samples, got {sums.count.astype(int).tolist()}")
    mean = sums.probability / sums.count[:, None]
    entropy = -(mean * np.log(np.where(mean > 0, mean, 1.0))).sum(axis=1)
    divergence = sums.certainty / sums.count + entropy
    scores = np.exp(divergence)
    return float(scores.mean()), float(scores.std())
