"""Statistics of a part of a set of images, stored while the rest is computed, so that an interrupted pass can go on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.evaluation.samples.features.class_sums import ClassSums
from starflow_jax.evaluation.samples.features.feature_statistics import RunningStatistics, read_arrays
from starflow_jax.evaluation.samples.features.moments import Moments

_SUMS = "sums.npz"


@dataclasses.dataclass(frozen=True)
class PartialStatistics:
    """A folder of statistics of the first images of a set.

    The sums are small and are written anew every time; the selected vectors are written once, in numbered files, and
    count only where the sums name them.

    Attributes:
      path: of the folder; identity: names the images and the network.
    """

    path: Path
    identity: str

    def read(self, total: int) -> RunningStatistics:
        """The stored statistics; of no images where the folder is missing, damaged, or has another identity."""
        sums = read_arrays(self.path / _SUMS)
        if sums is None or str(sums.get("identity")) != self.identity:
            return RunningStatistics(total)
        files = [read_arrays(self._vectors(index)) for index in range(int(sums["files"]))]
        vectors = [arrays["vectors"] for arrays in files if arrays is not None and self._owns(arrays)]
        if len(vectors) < len(files):
            return RunningStatistics(total)
        classes = None
        if "class_count" in sums:
            classes = ClassSums(*(sums[f"class_{name}"] for name in ("count", "certainty", "probability")))
        moments = Moments(int(sums["done"]), sums["mean"], sums["scatter"])
        return RunningStatistics(total, done=moments.count, moments=moments, classes=classes, features=vectors)

    def write(self, running: RunningStatistics, files: int, vectors: np.ndarray) -> None:
        """Stores the statistics so far, at the end of a group of vectors.

        Args:
          running: the statistics; files: number of files of vectors that were stored before.
          vectors: the selected ones since then.
        """
        moments, classes = running.moments, running.classes
        assert moments is not None
        self.path.mkdir(parents=True, exist_ok=True)
        with replacing(self._vectors(files)) as temporary:
            np.savez(temporary, identity=np.asarray(self.identity), vectors=vectors)
        arrays: dict[str, Any] = {
            "identity": np.asarray(self.identity),
            "files": np.asarray(files + 1),
            "done": np.asarray(running.done),
            "mean": moments.mean,
            "scatter": moments.scatter,
        }
        if classes is not None:
            arrays |= {f"class_{name}": getattr(classes, name) for name in ("count", "certainty", "probability")}
        with replacing(self.path / _SUMS) as temporary:
            np.savez(temporary, **arrays)

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _vectors(self, index: int) -> Path:
        return self.path / f"vectors-{index:06d}.npz"

    def _owns(self, arrays: dict[str, np.ndarray]) -> bool:
        return str(arrays.get("identity")) == self.identity and "vectors" in arrays
