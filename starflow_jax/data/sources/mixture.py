"""Several sources as one: every batch comes from one of them, so that it has one shape."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.data.sources.base import Source
from starflow_jax.data.sources.source_request import SourceRequest


@dataclass(frozen=True, eq=False)
class Component:
    """One source of a mixture, all of whose examples have one shape.

    Attributes:
      source: the examples; weight: share of the batches, relative to the other weights.
      batch_size: rows of its batches over all processes; None for the batch size of the loader.
    """

    source: Source
    weight: float = 1.0
    batch_size: int | None = None


@dataclass(frozen=True, eq=False)
class Mixture:
    """Sources with weights; indexed as one source, it concatenates their examples.

    Attributes:
      name: name in logs; components: the sources, which have the same number of levels.
      skipped: the examples that could not be read when they were opened.

    Raises:
      ValueError: no components, or numbers of levels that differ.
    """

    name: str
    components: tuple[Component, ...]
    skipped: Skipped = field(default_factory=Skipped)

    def __post_init__(self) -> None:
        check(len(self.components) > 0, f"{self.name} must have at least one source, got none")
        levels = {component.source.levels for component in self.components}
        check(len(levels) == 1, f"sources of a mixture must have the same number of levels, got {sorted(levels)}")

    @property
    def levels(self) -> int:
        """Number of levels of a pixel, the same in all components."""
        return self.components[0].source.levels

    @property
    def num_classes(self) -> int:
        """The largest number of classes of a component."""
        return max(component.source.num_classes for component in self.components)

    def __len__(self) -> int:
        return sum(len(component.source) for component in self.components)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        ends = list(itertools.accumulate(len(component.source) for component in self.components))
        if not 0 <= index < ends[-1]:
            raise IndexError(f"example must be 0 to {ends[-1] - 1}, got {index}")
        component = bisect.bisect_right(ends, index)
        return self.components[component].source[index - (ends[component - 1] if component else 0)]


def components_of(source: Source) -> tuple[Component, ...]:
    """The components of a mixture; any other source is its own single component."""
    return source.components if isinstance(source, Mixture) else (Component(source),)


def example_spec(source: Source) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each array of an example, without reading one where the source has `spec()`."""
    spec = getattr(source, "spec", None)
    if spec is not None:
        return spec()
    return {name: (np.shape(value), np.asarray(value).dtype) for name, value in source[0].items()}


def mixture_of_buckets(name: str, sources: Sequence[Source], skipped: Skipped) -> Mixture:
    """Aspect-ratio buckets as one source, each read in proportion to its number of examples."""
    return Mixture(name, tuple(Component(source, float(len(source))) for source in sources), skipped)


@SOURCES.register("mixture", frames="either", mixture=True)
def open_mixture(config: DataConfig, request: SourceRequest) -> Mixture:
    """The sources of `config.mixture`. The weight of a source with buckets is divided among the buckets."""
    components: list[Component] = []
    skipped = Skipped()
    names = []
    for part in config.mixture:
        if part.weight == 0:
            continue
        source = SOURCES.get(part.source)(part, request)
        names.append(part.source)
        buckets = components_of(source)
        total = sum(bucket.weight for bucket in buckets)
        components += [
            Component(bucket.source, part.weight * bucket.weight / total, part.batch_size) for bucket in buckets
        ]
        skipped.merge(getattr(source, "skipped", Skipped()))
    return Mixture(" + ".join(names), tuple(components), skipped)
