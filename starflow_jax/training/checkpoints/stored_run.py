"""The parameters of a run on disk, read piece by piece and compared with their checksum."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.flows.parameters import abstract
from starflow_jax.porting.tensor_names import flatten, is_stacked
from starflow_jax.training.checkpoints.digests import digest_from_sums, keys_by_path, partial_sum
from starflow_jax.training.checkpoints.finished_run import existing_step
from starflow_jax.training.checkpoints.manager import digests_of_run
from starflow_jax.training.checkpoints.parts import Unusable, agreed
from starflow_jax.training.checkpoints.streamed import StoredParams, Streamed
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRun:
    """The parameters of one checkpoint, none of which has been read yet.

    Attributes:
      folder: of the checkpoint; step: of the training; part: "params", or "ema" for their moving average.
      streams: the parameters by dotted path, stacked layers one by one; reading them raises Unusable.
      sums: those of what was read, by `keystr`; digest: what they should give together.
    """

    folder: Path
    step: int
    part: str
    streams: dict[str, Streamed]
    sums: dict[str, int]
    digest: str

    def check(self) -> None:
        """Raises Unusable unless all parameters were read and match their checksum."""
        if digest_from_sums(self.sums) != self.digest:
            raise Unusable(f"is damaged: {self.part} does not match its checksum")

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Turns Unusable into ValueError that names the checkpoint."""
        try:
            yield
        except Unusable as error:
            raise ValueError(f"checkpoint {self.folder} {error}") from error


def stored_run(workdir: Path, config: ExperimentConfig, step: int | None, *, ema: bool) -> StoredRun:
    """The parameters of a run, or with `ema` their moving average if the checkpoint has one; step None: the newest.

    Raises:
      ValueError: no such checkpoint, one of another run, or one whose list of checksums is damaged.
    """
    step = existing_step(workdir, config, step)
    folder = workdir.resolve() / CHECKPOINT_FOLDER / str(step)
    digests = agreed(folder, lambda: digests_of_run(folder, config))
    part = "ema" if ema and "ema" in digests else "params"
    expected = abstract(config.flow)[1]
    shapes, sums = flatten(expected), dict[str, int]()
    stored = StoredParams(folder / part, shapes)
    keys = keys_by_path(expected)

    def streamed(path: str) -> Streamed:
        leaf, stacked = shapes[path], is_stacked(path)

        def pieces() -> Iterator[tuple[int | None, np.ndarray]]:
            sums[keys[path]] = 0
            for index, piece in enumerate(stored.pieces(path, by_layer=stacked)):
                sums[keys[path]] += partial_sum(piece, index * piece.size)
                yield (index if stacked else None), piece

        chunk = (1, *leaf.shape[1:]) if stacked else tuple(leaf.shape)
        return Streamed(tuple(leaf.shape), np.dtype(leaf.dtype), chunk, pieces)

    return StoredRun(folder, step, part, {path: streamed(path) for path in shapes}, sums, str(digests.get(part)))
