"""Stored features of generated images, in chunks, so that a measurement can be stopped at any time and continued.

A chunk is a function of the parameters, the seed, the guidance and the index of the chunk. Its file is written whole or
not at all, holds its identity and has checksums; a file that is damaged or belongs to something else is computed again.
The noise of chunk k is the same for every guidance, so that differences between guidances are not caused by the noise.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.core.config.checks import check
from starflow_jax.core.figures import write_json
from starflow_jax.core.regular_files import parse_json, read_text
from starflow_jax.evaluation.samples.features.feature_network import Features
from starflow_jax.evaluation.samples.features.feature_statistics import read_arrays

PLAN_FILE = "plan.json"
DIGIT_FILE = "digit_features.safetensors"  # written before the plan, which holds its digest


def check_folder(path: Path) -> None:
    """Raises ValueError unless `path` is a folder of chunks, is empty, or does not exist."""
    known = (PLAN_FILE, DIGIT_FILE)
    check(
        not path.exists() or (path / PLAN_FILE).is_file() or {file.name for file in path.iterdir()} <= set(known),
        f"folder {path} is not empty and contains no samples of this command",
    )


def stored_plan(path: Path) -> dict[str, Any]:
    """The plan of a folder; empty where none can be read, which `ChunkFolder.claim` reports."""
    try:
        plan = parse_json(read_text(path / PLAN_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) else {}


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """The stored features and counts of the images of a chunk.

    Attributes:
      features: of the images; pair_scores: float64 [n], CLIP scores of images and captions, None without captions.
      non_finite: number of images with values that are not finite.
      unconverged: number of chunks of tokens that the solver left unconverged.
    """

    features: Features
    pair_scores: np.ndarray | None
    non_finite: int
    unconverged: int


@dataclasses.dataclass(frozen=True)
class ChunkFolder:
    """A folder of chunks.

    Attributes:
      path: of the folder.
      plan: everything that determines all chunks besides guidance and index, as JSON values; stored in `PLAN_FILE`.
      size: number of images of a full chunk.
    """

    path: Path
    plan: Mapping[str, Any]
    size: int

    def claim(self) -> None:
        """Creates the folder and writes its plan, or checks that the plan there is the same.

        Raises:
          ValueError: a folder with another plan, or with other files.
        """
        file = self.path / PLAN_FILE
        check_folder(self.path)
        if not file.is_file():
            write_json(file, self.plan)
            return
        try:
            before = parse_json(read_text(file))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        now = json.loads(json.dumps(self.plan))
        check(isinstance(before, dict), f"{file} is not a plan")
        for name in sorted({*now, *before}):
            check(
                before.get(name) == now.get(name),
                f"folder {self.path} contains samples whose {name} is {before.get(name)!r}, not {now.get(name)!r} as "
                "in this call; name another folder, or remove it",
            )

    def chunk_sizes(self, total: int) -> list[tuple[int, int]]:
        """(index, number of images) of the chunks of `total` images, of which the last may be short."""
        return [(k, min(self.size, total - k * self.size)) for k in range(-(-total // self.size))]

    def file(self, guidance: float, index: int) -> Path:
        """The file of a chunk."""
        return self.path / f"guidance-{guidance!r}" / f"chunk-{index:06d}.npz"

    def write(self, guidance: float, index: int, chunk: Chunk) -> None:
        """Stores a chunk."""
        path = self.file(guidance, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = np.asarray([chunk.non_finite, chunk.unconverged])
        arrays: dict[str, Any] = {"identity": np.asarray(self._identity(guidance, index)), "counts": counts}
        parts = {"features": chunk.features.features, "logits": chunk.features.logits, "clip": chunk.pair_scores}
        arrays |= {name: part for name, part in parts.items() if part is not None}
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)

    def read(self, guidance: float, index: int, count: int, *, pairs: bool = False) -> Chunk | None:
        """The first `count` images of a chunk; None where it is missing, damaged, of another plan, or too short.

        Args:
          pairs: whether the chunk must contain scores of images and captions.
        """
        arrays = read_arrays(self.file(guidance, index))
        if arrays is None or str(arrays.get("identity")) != self._identity(guidance, index):
            return None
        parts = [arrays.get(name) for name in ("features", "logits", "clip")]
        if parts[0] is None or "counts" not in arrays or (pairs and parts[2] is None):
            return None
        if any(part is not None and (len(part) < count or not np.isfinite(part).all()) for part in parts):
            return None
        features, logits, scores = (None if part is None else part[:count] for part in parts)
        assert features is not None
        return Chunk(Features(features, logits), scores, *(int(value) for value in arrays["counts"]))

    def chunks(self, guidance: float, total: int, *, pairs: bool = False) -> Iterator[Chunk]:
        """All chunks of `total` images, in order.

        Raises:
          ValueError: a chunk is missing.
        """
        for index, count in self.chunk_sizes(total):
            chunk = self.read(guidance, index, count, pairs=pairs)
            if chunk is None:
                raise ValueError(f"{self.file(guidance, index)} is missing or damaged")
            yield chunk

    def remove_temporary_files(self) -> None:
        """Removes the partly written files of processes that were killed."""
        for path in self.path.glob("guidance-*/.chunk-*.npz"):
            path.unlink(missing_ok=True)

    def _identity(self, guidance: float, index: int) -> str:
        return json.dumps([self.plan, guidance, index], sort_keys=True)
