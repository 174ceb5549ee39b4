"""What the metrics need of a set of pictures, summed up in one pass over what a feature network said of them."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.files import replacing
from starflow_jax.evaluation.samples.feature_network import Seen
from starflow_jax.evaluation.samples.frechet_distance import frechet_distance
from starflow_jax.evaluation.samples.inception_score import SPLITS, ClassSums, inception_score, split_of
from starflow_jax.evaluation.samples.kernel_distance import kernel_distance
from starflow_jax.evaluation.samples.moments import Moments, total_moments
from starflow_jax.evaluation.samples.precision_recall import precision_recall

# Metrics of features, by their names on the command line.
METRICS = ("fid", "is", "kid", "pr")
# KID and precision and recall compare vector by vector: of larger sets as many, evenly spaced.
MOST_KEPT = 50_000


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Of n pictures.

    Attributes:
      moments: of all features; classes: sums of class probabilities by split, None where the network has no classes.
      kept: features float32 [min(n, MOST_KEPT), d]: all, or evenly spaced ones.
    """

    moments: Moments
    classes: ClassSums | None
    kept: np.ndarray

    @property
    def count(self) -> int:
        """n."""
        return self.moments.count


def image_statistics(parts: Iterable[Seen], total: int) -> ImageStatistics:
    """Of `total` pictures whose features come in parts, in their order.

    Raises:
      ValueError: bad features, or another number of them.
    """
    classes: ClassSums | None = None
    kept: list[np.ndarray] = []
    done, splits = 0, min(SPLITS, total)

    def features() -> Iterator[np.ndarray]:
        nonlocal classes, done
        for part in parts:
            places = np.arange(done, done + len(part.features))
            if part.logits is not None:
                sums = ClassSums.of(part.logits, split_of(places, total, splits), splits)
                classes = sums if classes is None else classes + sums
            kept.append(part.features[_is_kept(places, total)])
            done += len(places)
            yield part.features

    moments = total_moments(features())
    if done != total:
        raise ValueError(f"statistics must be of {total} pictures, got {done}")
    return ImageStatistics(moments, classes, np.concatenate(kept))


def quality(found: ImageStatistics, real: ImageStatistics, metrics: Iterable[str]) -> dict[str, float]:
    """The figures of a set of pictures against real ones, by name.

    Args:
      metrics: of `METRICS`. "fid" gives fid; "is" gives is and is_std over splits; "kid" gives kid and kid_std over
        subsets; "pr" gives precision and recall.

    Raises:
      ValueError: "is" of a network without classes, or too few pictures.
    """
    figures: dict[str, float] = {}
    for metric in metrics:
        if metric == "fid":
            figures["fid"] = frechet_distance(found.moments, real.moments)
        elif metric == "is":
            if found.classes is None:
                raise ValueError("the Inception Score needs a network that gives logits, got features alone")
            figures["is"], figures["is_std"] = inception_score(found.classes)
        elif metric == "kid":
            distance = kernel_distance(found.kept, real.kept)
            figures["kid"], figures["kid_std"] = distance.mean, distance.std
        else:
            shares = precision_recall(real.kept, found.kept)
            figures["precision"], figures["recall"] = shares.precision, shares.recall
    return figures


def write_statistics(path: Path, statistics: ImageStatistics, identity: str) -> None:
    """Keeps statistics in a file, whole or not at all; `identity` says of what they are."""
    moments, classes = statistics.moments, statistics.classes
    arrays: dict[str, Any] = {
        "identity": np.asarray(identity),
        "count": np.asarray(moments.count),
        "mean": moments.mean,
        "scatter": moments.scatter,
        "kept": statistics.kept,
    }
    if classes is not None:
        arrays |= {f"class_{name}": getattr(classes, name) for name in ("count", "certainty", "probability")}
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def read_statistics(path: Path, identity: str) -> ImageStatistics | None:
    """What `write_statistics` kept; None where it is not there, damaged, or of something else."""
    arrays = read_arrays(path)
    if arrays is None or str(arrays.get("identity")) != identity:
        return None
    classes = None
    if "class_count" in arrays:
        classes = ClassSums(*(arrays[f"class_{name}"] for name in ("count", "certainty", "probability")))
    return ImageStatistics(Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"]), classes, arrays["kept"])


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz file, whose checksums are checked; None where it is not there or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def _is_kept(places: np.ndarray, total: int) -> np.ndarray:
    """Whether each place is among MOST_KEPT evenly spaced ones of `total`, bool."""
    if total <= MOST_KEPT:
        return np.ones(len(places), bool)
    return (places * MOST_KEPT) // total != ((places - 1) * MOST_KEPT) // total
