"""Statistics of the features of a set of images, computed in one pass, from which all metrics are computed."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.evaluation.samples.features.class_sums import SPLITS, ClassSums, split_index
from starflow_jax.evaluation.samples.features.feature_network import Features
from starflow_jax.evaluation.samples.features.moments import Moments, RunningMoments

# KID and precision and recall compare single vectors; of larger sets they use this many, evenly spaced.
MAX_VECTORS = 50_000


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Statistics of n images.

    Attributes:
      moments: of all features.
      classes: sums of class probabilities by split; None where the network gives no logits.
      features: float32 [min(n, MAX_VECTORS), d], all vectors or evenly spaced ones.
      pair_scores: float64 [n], scores of pairs of images and captions; None without captions.
    """

    moments: Moments
    classes: ClassSums | None
    features: np.ndarray
    pair_scores: np.ndarray | None = None

    @property
    def count(self) -> int:
        """n."""
        return self.moments.count


class RunningStatistics:
    """Statistics of the first images of a set, to which the features of the next ones are added in order.

    Attributes:
      total: number of images of the set; done: how many of them have been added.
      classes: sums of class probabilities so far; None without logits.
      features: the selected vectors so far, in parts.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        moments: Moments | None = None,
        classes: ClassSums | None = None,
        features: Iterable[np.ndarray] = (),
    ) -> None:
        self.total, self.done, self.classes, self.features = total, done, classes, list(features)
        self._moments = RunningMoments(moments)

    def add(self, part: Features) -> None:
        """Adds the features of the next images; raises ValueError for bad ones."""
        index = np.arange(self.done, self.done + len(part.features))
        if part.logits is not None:
            num_splits = min(SPLITS, self.total)
            sums = ClassSums.from_logits(part.logits, split_index(index, self.total, num_splits), num_splits)
            self.classes = sums if self.classes is None else self.classes + sums
        self.features.append(part.features[_is_selected(index, self.total)])
        self.done += len(index)
        self._moments.add(part.features)

    @property
    def moments(self) -> Moments | None:
        """The moments so far; None within a group of vectors, whose moments are computed together."""
        return self._moments.joined

    def result(self) -> FeatureStatistics:
        """The statistics of the set; raises ValueError unless all images were added."""
        moments = self._moments.total()
        if self.done != self.total:
            raise ValueError(f"statistics must cover {self.total} images, got {self.done}")
        return FeatureStatistics(moments, self.classes, np.concatenate(self.features))


def feature_statistics(parts: Iterable[Features], total: int) -> FeatureStatistics:
    """Statistics of `total` images whose features come in parts, in order.

    Raises:
      ValueError: bad features, or another number of them.
    """
    running = RunningStatistics(total)
    for part in parts:
        running.add(part)
    return running.result()


def write_statistics(path: Path, statistics: FeatureStatistics, identity: str) -> None:
    """Stores statistics in a file, written whole or not at all; `identity` names the images and network."""
    moments, classes = statistics.moments, statistics.classes
    arrays: dict[str, Any] = {
        "identity": np.asarray(identity),
        "count": np.asarray(moments.count),
        "mean": moments.mean,
        "scatter": moments.scatter,
        "kept": statistics.features,
    }
    if classes is not None:
        arrays |= {f"class_{name}": getattr(classes, name) for name in ("count", "certainty", "probability")}
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def read_statistics(path: Path, identity: str) -> FeatureStatistics | None:
    """Statistics that `write_statistics` stored; None where the file is missing, damaged, or has another identity."""
    arrays = read_arrays(path)
    if arrays is None or str(arrays.get("identity")) != identity:
        return None
    classes = None
    if "class_count" in arrays:
        classes = ClassSums(*(arrays[f"class_{name}"] for name in ("count", "certainty", "probability")))
    moments = Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
    return FeatureStatistics(moments, classes, arrays["kept"])


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file, checked against its checksums; None where the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def _is_selected(index: np.ndarray, total: int) -> np.ndarray:
    """Whether each index is among MAX_VECTORS evenly spaced ones of `total`, bool."""
    if total <= MAX_VECTORS:
        return np.ones(len(index), bool)
    return (index * MAX_VECTORS) // total != ((index - 1) * MAX_VECTORS) // total
