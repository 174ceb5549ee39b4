"""A source without the examples that cannot be read, for what needs every example to count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import TRIES, BadExample, Skipped, hopeless
from starflow_jax.data.sources.base import ArraySource, Source


@dataclass(frozen=True, eq=False)
class Subset:
    """Some examples of a source, by their places in it."""

    source: Source
    places: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the source."""
        return self.source.name

    @property
    def levels(self) -> int:
        """Of the source."""
        return self.source.levels

    @property
    def num_classes(self) -> int:
        """Of the source."""
        return self.source.num_classes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.places[index]]


def next_readable(source: Source, place: int) -> dict[str, Any]:
    """The example at `place`, or the first after it that can be read, from the last one on to the first.

    Raises:
      ValueError: 100 in a row are bad.
    """
    reasons = {}
    for attempt in range(TRIES):
        try:
            return source[(place + attempt) % len(source)]
        except BadExample as error:
            reasons[error.name] = error.reason
    raise ValueError(hopeless(TRIES, TRIES, reasons))


def readable(source: Source, skipped: Skipped, count: int | None = None) -> Source:
    """The first `count` examples (None: all) that can be read; every one before them is tried.

    Args:
      skipped: where the others are counted and named.

    Raises:
      ValueError: most examples are bad.
    """
    if isinstance(source, ArraySource):
        return source
    places: list[int] = []
    for place in range(len(source)):
        if len(places) == count:
            break
        try:
            source[place]
        except BadExample as error:
            skipped.add(1, [(error.name, error.reason)])
            continue
        skipped.add(1, [])
        places.append(place)
    check(len(places) > 0, f"{source.name} must hold an example that can be read, got none")
    return source if len(places) == len(source) else Subset(source, tuple(places))
