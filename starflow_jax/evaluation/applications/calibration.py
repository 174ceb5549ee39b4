"""Calibration of a classifier's probabilities: the reliability diagram, and the errors that summarise it.

A classifier is calibrated where, among images whose class it gives the probability p, a share p has that class. Its
predictions are sorted into M equal bins ((m - 1) / M, m / M] by the probability of the predicted class. In every bin
the share that is right is compared with the mean probability. The expected calibration error is the mean of the
absolute difference over images, the maximum calibration error its maximum over bins (Guo et al., arXiv 1706.04599).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check, check_integer


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """The reliability diagram of a classifier.

    Attributes:
      images: int64 [M], predictions in every bin.
      confidence: float64 [M], the mean probability of the predicted class; accuracy: float64 [M], the share that is
        right. Both NaN in bins without predictions.
      spread: float64 [M], the standard deviation that `accuracy` has in a calibrated classifier,
        sqrt(sum of p (1 - p)) / images, which says how far from the diagonal chance alone takes it (the consistency
        bars of Broecker and Smith 2007, Weather and Forecasting 22). NaN in bins without predictions.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    spread: np.ndarray

    @classmethod
    def from_predictions(cls, probabilities: np.ndarray, right: np.ndarray, *, bins: int = 10) -> Reliability:
        """Sorts predictions into bins.

        Args:
          probabilities: real [n] in 0 .. 1, of the predicted class; right: bool [n]; bins: their number M.

        Raises:
          ValueError: other shapes, no predictions, or probabilities out of range.
        """
        check_integer("bins", bins, minimum=1)
        p, right = np.asarray(probabilities, np.float64), np.asarray(right, bool)
        check(
            p.ndim == 1 and p.shape == right.shape and p.size > 0,
            f"probabilities and right must be [n] with n above 0, got {list(p.shape)} and {list(right.shape)}",
        )
        check(bool((p >= 0).all() and (p <= 1).all()), f"probabilities must be from 0 to 1, got {p.min()} to {p.max()}")
        edges = np.arange(bins + 1) / bins
        of_bin = np.maximum(np.searchsorted(edges, p, side="left") - 1, 0)
        images = np.bincount(of_bin, minlength=bins)
        with np.errstate(invalid="ignore"):
            confidence = np.bincount(of_bin, p, bins) / images
            accuracy = np.bincount(of_bin, right, bins) / images
            spread = np.sqrt(np.bincount(of_bin, p * (1 - p), bins)) / images
        return cls(images, confidence, accuracy, spread)

    @property
    def expected_error(self) -> float:
        """The expected calibration error."""
        return float(np.nansum(self.images * np.abs(self.accuracy - self.confidence)) / self.images.sum())

    @property
    def maximum_error(self) -> float:
        """The maximum calibration error."""
        return float(np.nanmax(np.abs(self.accuracy - self.confidence)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: of every bin with predictions, and the two errors."""
        count = len(self.images)
        rows = [
            {
                "above": index / count,
                "to": (index + 1) / count,
                "images": int(self.images[index]),
                "confidence": float(self.confidence[index]),
                "accuracy": float(self.accuracy[index]),
                "spread": float(self.spread[index]),
            }
            for index in np.flatnonzero(self.images)
        ]
        return {"expected_error": self.expected_error, "maximum_error": self.maximum_error, "bins": rows}
