"""A source without the examples that cannot be read, for evaluations that need every example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import TRIES, BadExample, Skipped, too_many_bad
from starflow_jax.data.sources.base import ArraySource, Source


@dataclass(frozen=True, eq=False)
class Subset:
    """The examples of a source at some indices."""

    source: Source
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        """See `Source`."""
        return self.source.name

    @property
    def levels(self) -> int:
        """See `Source`."""
        return self.source.levels

    @property
    def num_classes(self) -> int:
        """See `Source`."""
        return self.source.num_classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.indices[index]]


def next_readable(source: Source, index: int) -> dict[str, Any]:
    """The first readable example at or after `index`, continuing at index 0 after the last.

    Raises:
      ValueError: 100 consecutive examples cannot be read.
    """
    reasons = {}
    for attempt in range(TRIES):
        try:
            return source[(index + attempt) % len(source)]
        except BadExample as error:
            reasons[error.name] = error.reason
    raise ValueError(too_many_bad(TRIES, TRIES, reasons))


def readable(source: Source, skipped: Skipped, count: int | None = None) -> Source:
    """The first `count` examples (None: all) that can be read.

    Args:
      source: the examples; skipped: counts and names those that cannot be read.

    Raises:
      ValueError: most examples cannot be read.
    """
    if isinstance(source, ArraySource):
        return source
    indices: list[int] = []
    for index in range(len(source)):
        if len(indices) == count:
            break
        try:
            source[index]
        except BadExample as error:
            skipped.add(1, [(error.name, error.reason)])
            continue
        skipped.add(1, [])
        indices.append(index)
    check(len(indices) > 0, f"{source.name} must contain an example that can be read, got none")
    return source if len(indices) == len(source) else Subset(source, tuple(indices))
