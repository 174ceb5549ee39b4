"""Reads the rows of a batch, each with a separate random generator, and replaces examples that cannot be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from starflow_jax.data.decoding.bad_examples import TRIES, BadExample, too_many_bad
from starflow_jax.data.pipeline.batch_order import Rows
from starflow_jax.data.sources.base import CAPTION, Source


class Row(NamedTuple):
    """One row of a batch.

    Attributes:
      example: its arrays, and perhaps its caption; tried: number of examples requested until one could be read.
      bad: (name, reason) of those that could not.
    """

    example: Mapping[str, Any]
    tried: int
    bad: tuple[tuple[str, str], ...]


class AssembledBatch(NamedTuple):
    """One batch, with the counts of `Row` over its rows.

    Attributes:
      batch: arrays with the rows as first axis; empty where `failure` is the error message.
    """

    batch: dict[str, np.ndarray]
    tried: int
    bad: tuple[tuple[str, str], ...]
    failure: str = ""


def read_row(source: Source, component: int, seed: int, position: int, example: int) -> Row:
    """The row at `position` of the stream of a source: `example`, or a random replacement where it cannot be read.

    All random choices (crop, flip, caption, replacement) are functions of the arguments.

    Raises:
      ValueError: 100 consecutive examples cannot be read.
    """
    draw = getattr(source, "draw", None)
    bad: list[tuple[str, str]] = []
    for attempt in range(TRIES):
        rng = np.random.default_rng([seed, component, position, attempt])
        chosen = example if attempt == 0 else int(rng.integers(len(source)))
        try:
            arrays = source[chosen] if draw is None else draw(chosen, rng)
        except BadExample as error:
            bad.append((error.name, error.reason))
        else:
            return Row(arrays, attempt + 1, tuple(bad))
    raise ValueError(too_many_bad(TRIES, TRIES, dict(bad)))


@dataclasses.dataclass(frozen=True, eq=False)
class BatchAssembler:
    """Reads whole batches, one row after another; a picklable value for worker processes."""

    sources: tuple[Source, ...]
    seed: int

    def row(self, component: int, position: int, example: int) -> Row:
        """One row; see `read_row`."""
        return read_row(self.sources[component], component, self.seed, position, example)

    def __call__(self, rows: Rows) -> AssembledBatch:
        try:
            return gather([self.row(rows.component, *example) for example in rows.examples])
        except ValueError as error:
            # Returned as a value, because worker processes wrap exceptions in other types.
            return AssembledBatch({}, 0, (), str(error))


def gather(rows: Sequence[Row]) -> AssembledBatch:
    """Stacks rows to a batch."""
    batch = stacked([row.example for row in rows])
    return AssembledBatch(batch, sum(row.tried for row in rows), tuple(bad for row in rows for bad in row.bad))


def stacked(examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Examples of one shape along a new first axis, without their captions as text."""
    names = [name for name in examples[0] if name != CAPTION]
    return {name: np.stack([example[name] for example in examples]) for name in names}
