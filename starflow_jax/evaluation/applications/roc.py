"""Metrics of a score as a binary classifier: the ROC curve, the area under it, rates and precision at a threshold."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check, check_integer


@dataclasses.dataclass(frozen=True)
class Auroc:
    """The area under the ROC curve.

    Attributes:
      area: probability that a positive scores above a negative, ties counting half; 1/2 is chance.
      error: its standard error (DeLong et al. 1988, Biometrics 44), NaN with fewer than two of a kind.
      positives, negatives: their numbers.
    """

    area: float
    error: float
    positives: int
    negatives: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def auroc(positives: np.ndarray, negatives: np.ndarray) -> Auroc:
    """The area under the ROC curve of a score that should be high for positives.

    The area is the Mann-Whitney statistic. Its error is DeLong's: the variances, over examples of each kind, of the
    share of the other kind that an example is on the right side of.

    Args:
      positives, negatives: scores [m], [n]; infinities are allowed.

    Raises:
      ValueError: other shapes, no positives or no negatives, or scores that are NaN.
    """
    high, low = _scores("positives", positives), _scores("negatives", negatives)
    of_high, of_low = _share_below(high, low), 1.0 - _share_below(low, high)
    m, n = len(high), len(low)
    error = math.nan
    if m > 1 and n > 1:
        error = math.sqrt(float(of_high.var(ddof=1)) / m + float(of_low.var(ddof=1)) / n)
    return Auroc(float(of_high.mean()), error, m, n)


def roc_curve(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates as the threshold falls, float64 [k], from (0, 0) to (1, 1).

    Args and errors as of `auroc`; ties are one step, so that the trapezoidal area under the curve is that of `auroc`.
    """
    high, low = _scores("positives", positives), _scores("negatives", negatives)
    thresholds = np.unique(np.concatenate([high, low]))[::-1]
    true = (len(high) - np.searchsorted(np.sort(high), thresholds, side="left")) / len(high)
    false = (len(low) - np.searchsorted(np.sort(low), thresholds, side="left")) / len(low)
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def true_positive_rate_at(positives: np.ndarray, negatives: np.ndarray, rate: float) -> float:
    """The largest true positive rate of a threshold whose false positive rate is at most `rate`.

    What is found by a test of membership that may hardly ever be wrong, which AUROC does not show (Carlini et al.,
    arXiv 2112.03570). Args and errors as of `auroc`; rate: from 0 to 1.
    """
    check(0 <= rate <= 1, f"rate must be from 0 to 1, got {rate}")
    false, true = roc_curve(positives, negatives)
    return float(true[false <= rate].max())


def precision_at(scores: np.ndarray, positive: np.ndarray, k: int) -> float:
    """Share of positives among the k highest scores; the expected share where ties at the border are broken at random.

    Args:
      scores: [n], not NaN; positive: bool [n]; k: from 1 to n.

    Raises:
      ValueError: shapes that differ, a k out of range, or scores that are NaN.
    """
    scores, positive = _scores("scores", scores), np.asarray(positive, bool)
    check(scores.shape == positive.shape, f"wanted must be {list(scores.shape)}, got {list(positive.shape)}")
    check_integer("k", k, minimum=1)
    check(k <= len(scores), f"k must be at most the {len(scores)} scores, got {k}")
    border = np.sort(scores)[-k]
    above, tied = scores > border, scores == border
    rest = k - int(above.sum())
    return float((positive[above].sum() + rest * positive[tied].mean()) / k)


def _share_below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For every score the share of others below it, ties counting half, float64."""
    others = np.sort(others)
    below, below_or_equal = np.searchsorted(others, scores, side="left"), np.searchsorted(others, scores, side="right")
    return (below + below_or_equal) / (2.0 * len(others))


def _scores(name: str, scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    check(scores.ndim == 1 and len(scores) > 0, f"{name} must be [n] with n above 0, got {list(scores.shape)}")
    bad = int(np.isnan(scores).sum())
    check(bad == 0, f"{name} must not be NaN, got {bad} values that are")
    return scores
