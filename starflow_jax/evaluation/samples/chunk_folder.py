"""Features of generated pictures on disk, in chunks that a sweep can be stopped between, and killed within.

A chunk is a function of the parameters, the seed, the guidance and its number alone; its file appears whole or not at
all, names what it is, and has checksums. So whatever happens to a sweep, what lies in its folder counts once or is
drawn anew. The noise of chunk k is the same for every guidance: differences between them are theirs, not the noise's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.figures import write_json
from starflow_jax.core.files import replacing
from starflow_jax.evaluation.samples.feature_network import Seen
from starflow_jax.evaluation.samples.feature_statistics import read_arrays

PLAN_FILE = "plan.json"
DIGIT_FILE = "digit_features.safetensors"  # may lie there before there is a plan, which names its digest


def check_free(path: Path) -> None:
    """Raises ValueError unless `path` is a folder of this command, or could become one."""
    known = (PLAN_FILE, DIGIT_FILE)
    check(
        not path.exists() or (path / PLAN_FILE).is_file() or {one.name for one in path.iterdir()} <= set(known),
        f"folder {path} is not empty and holds no samples of this command",
    )


def kept_plan(path: Path) -> dict[str, Any]:
    """The plan of a folder; empty where there is none that can be read, which `ChunkFolder.claim` says."""
    try:
        plan = json.loads((path / PLAN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) else {}


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """What is kept of the pictures of a chunk.

    Attributes:
      seen: features, and logits; clip: CLIP scores float64 [n] of pictures and captions, None where not asked for.
      non_finite: pictures with values that were not finite; unconverged: stretches of tokens left unsolved.
    """

    seen: Seen
    clip: np.ndarray | None
    non_finite: int
    unconverged: int


@dataclasses.dataclass(frozen=True)
class ChunkFolder:
    """A folder of chunks.

    Attributes:
      path: of the folder; plan: what all its chunks depend on besides guidance and number, as JSON has it, kept in
        `PLAN_FILE`; size: pictures of a whole chunk.
    """

    path: Path
    plan: Mapping[str, Any]
    size: int

    def claim(self) -> None:
        """Makes the folder this plan's: creates it, or checks that it is.

        Raises:
          ValueError: a folder of another plan, or one that holds something else.
        """
        file = self.path / PLAN_FILE
        check_free(self.path)
        if not file.is_file():
            write_json(file, self.plan)
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not read: {error}") from error
        now = json.loads(json.dumps(self.plan))
        check(isinstance(before, dict), f"{file} is no plan")
        for name in sorted({*now, *before}):
            check(
                before.get(name) == now.get(name),
                f"folder {self.path} holds samples whose {name} is {before.get(name)!r} there and {now.get(name)!r} "
                "here; name another folder, or remove it",
            )

    def wanted(self, total: int) -> list[tuple[int, int]]:
        """The chunks of `total` pictures: (number, pictures), of which the last may be short."""
        return [(k, min(self.size, total - k * self.size)) for k in range(-(-total // self.size))]

    def file(self, guidance: float, number: int) -> Path:
        """Where a chunk lies."""
        return self.path / f"guidance-{guidance!r}" / f"chunk-{number:06d}.npz"

    def write(self, guidance: float, number: int, chunk: Chunk) -> None:
        """Keeps a chunk."""
        path = self.file(guidance, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = np.asarray([chunk.non_finite, chunk.unconverged])
        arrays: dict[str, Any] = {"identity": np.asarray(self._identity(guidance, number)), "counts": counts}
        parts = {"features": chunk.seen.features, "logits": chunk.seen.logits, "clip": chunk.clip}
        arrays |= {name: part for name, part in parts.items() if part is not None}
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)

    def read(self, guidance: float, number: int, count: int, *, clip: bool = False) -> Chunk | None:
        """The first `count` pictures of a chunk; None where it is missing, damaged, of another plan, or too short.

        Args:
          clip: whether it must hold CLIP scores.
        """
        arrays = read_arrays(self.file(guidance, number))
        if arrays is None or str(arrays.get("identity")) != self._identity(guidance, number):
            return None
        parts = [arrays.get(name) for name in ("features", "logits", "clip")]
        if parts[0] is None or "counts" not in arrays or (clip and parts[2] is None):
            return None
        if any(part is not None and (len(part) < count or not np.isfinite(part).all()) for part in parts):
            return None
        features, logits, scores = (None if part is None else part[:count] for part in parts)
        assert features is not None
        return Chunk(Seen(features, logits), scores, *(int(value) for value in arrays["counts"]))

    def chunks(self, guidance: float, total: int, *, clip: bool = False) -> Iterator[Chunk]:
        """All chunks of `total` pictures, one after another.

        Raises:
          ValueError: one that is not there.
        """
        for number, count in self.wanted(total):
            chunk = self.read(guidance, number, count, clip=clip)
            if chunk is None:
                raise ValueError(f"{self.file(guidance, number)} is missing or damaged")
            yield chunk

    def drop_torn(self) -> None:
        """Removes what a process that was killed left half written."""
        for path in self.path.glob("guidance-*/.chunk-*.npz"):
            path.unlink(missing_ok=True)

    def _identity(self, guidance: float, number: int) -> str:
        return json.dumps([self.plan, guidance, number], sort_keys=True)
