"""Statistics of the features of a set of images, computed in one pass, from which all metrics are computed."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.evaluation.samples.features.class_sums import SPLITS, ClassSums, split_index
from starflow_jax.evaluation.samples.features.feature_network import Features
from starflow_jax.evaluation.samples.features.moments import Moments, total_moments

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


def feature_statistics(parts: Iterable[Features], total: int) -> FeatureStatistics:
    """Statistics of `total` images whose features come in parts, in order.

    Raises:
      ValueError: bad features, or another number of them.
    """
    classes: ClassSums | None = None
    selected: list[np.ndarray] = []
    done, num_splits = 0, min(SPLITS, total)

    def features() -> Iterator[np.ndarray]:
        nonlocal classes, done
        for part in parts:
            index = np.arange(done, done + len(part.features))
            if part.logits is not None:
                sums = ClassSums.from_logits(part.logits, split_index(index, total, num_splits), num_splits)
                classes = sums if classes is None else classes + sums
            selected.append(part.features[_is_selected(index, total)])
            done += len(index)
            yield part.features

    moments = total_moments(features())
    if done != total:
        raise ValueError(f"statistics must cover {total} images, got {done}")
    return FeatureStatistics(moments, classes, np.concatenate(selected))


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
