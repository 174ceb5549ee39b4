"""A class-conditional density as a classifier: argmax over y of log p(x | y), all classes equally likely."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Share of images that Bayes' rule gives their true class.

    Attributes:
      mean: with densities averaged over the draws of an image, 0 to 1; correct, images: the two counts.
      error: its standard error, sqrt(p (1 - p) / n).
      one_draw: the same share from one draw alone, averaged over draws.
    """

    mean: float
    error: float
    one_draw: float
    correct: int
    images: int


def classify(class_log_probs: np.ndarray) -> np.ndarray:
    """The most probable class of every image, int64 [n].

    The mean of p(x | y) over draws of the dequantisation noise, not the mean of its logarithm, estimates
    the probability of the integer image itself, so densities are averaged.

    Args:
      class_log_probs: log p(x | y) in nats, [draws, n, classes].
    """
    return log_mean_exp(class_log_probs).argmax(axis=1)


def log_mean_exp(values: np.ndarray) -> np.ndarray:
    """log of the mean of exp over the first axis."""
    return np.logaddexp.reduce(np.asarray(values, np.float64), axis=0) - math.log(len(values))


def bayes_accuracy(class_log_probs: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Accuracy of `classify`.

    Args:
      class_log_probs: log p(x | y) in nats, [draws, n, classes].
      labels: int [n], the true classes.

    Raises:
      ValueError: shapes that do not fit, or a density that is NaN (its rank would be arbitrary).
    """
    if class_log_probs.ndim != 3 or class_log_probs.shape[1:2] != np.shape(labels):
        raise ValueError(
            "class_log_probs must be [draws, n, classes] for labels [n], "
            f"got {list(class_log_probs.shape)} and {list(np.shape(labels))}"
        )
    bad = int(np.isnan(class_log_probs).sum())
    if bad:
        raise ValueError(f"class_log_probs must not be NaN, got {bad} values that are")
    hits = classify(class_log_probs) == labels
    share = float(hits.mean())
    return Accuracy(
        mean=share,
        error=math.sqrt(share * (1 - share) / len(hits)),
        one_draw=float((class_log_probs.argmax(axis=2) == np.asarray(labels)).mean()),
        correct=int(hits.sum()),
        images=len(hits),
    )
