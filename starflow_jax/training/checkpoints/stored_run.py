"""The parameters of a run on disk, read one layer at a time and compared with their checksum."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.flows.parameters import abstract
from starflow_jax.porting.tensor_names import flatten
from starflow_jax.training.checkpoints.digests import digest_from_sums, partial_sum
from starflow_jax.training.checkpoints.parts import Unusable, read_digests
from starflow_jax.training.checkpoints.ported import existing_step
from starflow_jax.training.checkpoints.quantised_streams import is_stacked
from starflow_jax.training.checkpoints.streamed import StoredParams, Streamed
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRun:
    """The parameters of one checkpoint, none of which has been read yet.

    Attributes:
      folder: of the checkpoint; step: of the training.
      streams: the parameters by dotted path.
      sums: those of the parameters that were read to their end, by `keystr`; digest: what they should give together.
    """

    folder: Path
    step: int
    streams: dict[str, Streamed]
    sums: dict[str, int]
    digest: str

    def check(self) -> None:
        """Raises ValueError unless all parameters were read and match their checksum."""
        check(digest_from_sums(self.sums) == self.digest, f"checkpoint {self.folder} is damaged: a checksum differs")


def stored_run(workdir: Path, config: ExperimentConfig, step: int | None, *, ema: bool) -> StoredRun:
    """The parameters of a run, or with `ema` their moving average if the checkpoint has one; step None: the newest.

    Raises:
      ValueError: no such checkpoint, or one whose list of checksums is damaged. Reading a stream raises it, too.
    """
    step = existing_step(workdir, config, step)
    folder = workdir.resolve() / CHECKPOINT_FOLDER / str(step)
    expected = abstract(config.flow)[1]
    shapes = flatten(expected)
    try:
        digests = read_digests(folder)
    except Unusable as error:
        raise ValueError(f"checkpoint {folder} {error}") from error
    part = "ema" if ema and "ema" in digests else "params"
    stored, sums = StoredParams(folder / part, shapes), dict[str, int]()
    keys = {
        ".".join(str(key.key) for key in path): jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(expected)
    }

    def streamed(path: str) -> Streamed:
        leaf, stacked = shapes[path], is_stacked(path)

        def pieces() -> Iterator[tuple[int | None, np.ndarray]]:
            total = 0
            try:
                for index, piece in enumerate(stored.pieces(path, by_layer=stacked)):
                    total += partial_sum(piece, index * piece.size)
                    yield (index if stacked else None), piece
            except Unusable as error:
                raise ValueError(f"checkpoint {folder} {error}") from error
            sums[keys[path]] = total

        chunk = (1, *leaf.shape[1:]) if stacked else tuple(leaf.shape)
        return Streamed(tuple(leaf.shape), np.dtype(leaf.dtype), chunk, pieces)

    return StoredRun(folder, step, {path: streamed(path) for path in shapes}, sums, str(digests.get(part)))
