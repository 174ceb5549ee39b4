"""From the plan of a batch to its arrays: every row drawn by its own generator, bad examples replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from starflow_jax.data.decoding.bad_examples import TRIES, BadExample, hopeless
from starflow_jax.data.pipeline.batch_order import Rows
from starflow_jax.data.sources.base import Source

# Of an example, but not of a batch: for people.
CAPTION = "caption"


class Drawn(NamedTuple):
    """One row.

    Attributes:
      example: its arrays, and perhaps its caption; tried: examples that were asked for until one could be used.
      bad: (name, reason) of those that could not.
    """

    example: Mapping[str, Any]
    tried: int
    bad: tuple[tuple[str, str], ...]


class Drawing(NamedTuple):
    """One batch, and what was met on the way.

    Attributes:
      batch: arrays, rows first; empty where `failure` says why there is none.
    """

    batch: dict[str, np.ndarray]
    tried: int
    bad: tuple[tuple[str, str], ...]
    failure: str = ""


def draw_row(source: Source, component: int, seed: int, place: int, example: int) -> Drawn:
    """The row at `place` of a source's stream: `example`, or where that is bad one drawn in its stead.

    Everything random (cropping, flipping, the caption, and which example stands in) follows from the numbers given.

    Raises:
      ValueError: 100 examples in a row are bad.
    """
    draw = getattr(source, "draw", None)
    bad: list[tuple[str, str]] = []
    for attempt in range(TRIES):
        rng = np.random.default_rng([seed, component, place, attempt])
        chosen = example if attempt == 0 else int(rng.integers(len(source)))
        try:
            found = source[chosen] if draw is None else draw(chosen, rng)
        except BadExample as error:
            bad.append((error.name, error.reason))
        else:
            return Drawn(found, attempt + 1, tuple(bad))
    raise ValueError(hopeless(TRIES, TRIES, dict(bad)))


@dataclasses.dataclass(frozen=True, eq=False)
class DrawBatch:
    """Draws whole batches, one row after another; a value that worker processes are given."""

    sources: tuple[Source, ...]
    seed: int

    def row(self, component: int, place: int, example: int) -> Drawn:
        """One row; see `draw_row`."""
        return draw_row(self.sources[component], component, self.seed, place, example)

    def __call__(self, rows: Rows) -> Drawing:
        try:
            return gather([self.row(rows.component, *place) for place in rows.places])
        except ValueError as error:
            # As a value: worker processes wrap what they raise into errors of another kind.
            return Drawing({}, 0, (), str(error))


def gather(drawn: Sequence[Drawn]) -> Drawing:
    """Rows as one batch."""
    batch = stacked([row.example for row in drawn])
    return Drawing(batch, sum(row.tried for row in drawn), tuple(bad for row in drawn for bad in row.bad))


def stacked(examples: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Examples of one shape along a new first axis, without what is only for people."""
    names = [name for name in examples[0] if name != CAPTION]
    return {name: np.stack([example[name] for example in examples]) for name in names}
