"""Several sources as one: every batch comes from one of them, so that it has one shape."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.data.sources.base import Source


@dataclass(frozen=True, eq=False)
class Component:
    """One source of a mixture, all of whose examples have one shape.

    Attributes:
      source: the examples; weight: share of the batches, relative to those of the others.
      batch_size: rows of its batches over all processes; None for what the loader is asked for.
    """

    source: Source
    weight: float = 1.0
    batch_size: int | None = None


@dataclass(frozen=True, eq=False)
class Mixture:
    """Sources with weights; as a source itself, one after another.

    Attributes:
      name: for logs; components: the sources, which have one number of levels.
      skipped: what was bad already when they were opened.

    Raises:
      ValueError: no components, or levels that differ.
    """

    name: str
    components: tuple[Component, ...]
    skipped: Skipped = field(default_factory=Skipped)

    def __post_init__(self) -> None:
        check(len(self.components) > 0, f"{self.name} must have at least one source, got none")
        levels = {component.source.levels for component in self.components}
        check(len(levels) == 1, f"sources of a mixture must have one number of levels, got {sorted(levels)}")

    @property
    def levels(self) -> int:
        """Values of a pixel, the same in all."""
        return self.components[0].source.levels

    @property
    def num_classes(self) -> int:
        """The most classes of any."""
        return max(component.source.num_classes for component in self.components)

    def __len__(self) -> int:
        return sum(len(component.source) for component in self.components)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        ends = list(itertools.accumulate(len(component.source) for component in self.components))
        if not 0 <= index < ends[-1]:
            raise IndexError(f"example must be 0 to {ends[-1] - 1}, got {index}")
        place = bisect.bisect_right(ends, index)
        return self.components[place].source[index - (ends[place - 1] if place else 0)]


def components_of(source: Source) -> tuple[Component, ...]:
    """The components of a mixture; any other source is its own only one."""
    return source.components if isinstance(source, Mixture) else (Component(source),)


def example_spec(source: Source) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each array of an example, without decoding one where the source knows them."""
    spec = getattr(source, "spec", None)
    if spec is not None:
        return spec()
    return {name: (np.shape(value), np.asarray(value).dtype) for name, value in source[0].items()}
