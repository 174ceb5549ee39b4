"""What a loader gives, in numbers and examples: for people who want to see it before a model does."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starflow_jax.data.decoding.bad_examples import MOST_NAMED
from starflow_jax.data.pipeline.draw import CAPTION
from starflow_jax.data.pipeline.loader import Loader, Peek
from starflow_jax.data.sources.base import Source
from starflow_jax.data.sources.mixture import components_of
from starflow_jax.models.text.words import WordEncoder

# Batches looked through for the first of every source, and what is read of each.
_AHEAD = 20_000
SHOWN = 6


@dataclass(frozen=True, eq=False)
class Part:
    """One source, or one bucket of one.

    Attributes:
      source: the examples, count of them, called name; batch_size: rows of its batches; share: of the batches.
      shape: of an example, without the batch; dtype: of its pixels or latents.
      examples: the first few of training, with what their captions are.
    """

    source: Source
    batch_size: int
    share: float
    shape: tuple[int, ...]
    dtype: str
    examples: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """Of the source."""
        return self.source.name

    @property
    def count(self) -> int:
        """Its examples."""
        return len(self.source)


@dataclass(frozen=True, eq=False)
class Overview:
    """All parts.

    Attributes:
      programs: shapes of batches, for each of which a training step is compiled.
      unknown: words of the captions seen that the vocabulary lacks; words: how many words were seen in all.
      skipped: why, by name, files could not be used; bad: how many.
    """

    parts: tuple[Part, ...]
    programs: int
    unknown: tuple[str, ...]
    words: int
    skipped: Mapping[str, str]
    bad: int

    def rows(self) -> list[list[str]]:
        """A table."""
        head = ["source", "examples", "shape", "batch", "share of batches", "batches an epoch"]
        return [
            head,
            *(
                [
                    part.name,
                    str(part.count),
                    "x".join(map(str, part.shape)),
                    str(part.batch_size),
                    f"{100 * part.share:.1f} %",
                    f"{part.count / part.batch_size:.1f}",
                ]
                for part in self.parts
            ),
        ]

    def notes(self) -> list[str]:
        """What else is worth knowing, one sentence each."""
        found = [f"{self.programs} shapes of batches: as many programs compile"]
        for part in self.parts:
            if part.count < part.batch_size:
                found.append(f"{part.name} has fewer examples than a batch: one holds some of them several times")
        if self.unknown:
            found.append(
                f"{len(self.unknown)} of {self.words} words of the captions seen are not in the vocabulary and left "
                f"out: {', '.join(sorted(set(self.unknown))[:10])}"
            )
        if self.bad:
            found.append(f"{self.bad} files cannot be used and are skipped")
        return found

    def figures(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "programs": self.programs,
            "parts": [
                {
                    "name": part.name,
                    "examples": part.count,
                    "shape": part.shape,
                    "dtype": part.dtype,
                    "batch_size": part.batch_size,
                    "share": part.share,
                }
                for part in self.parts
            ],
            "unknown_words": sorted(set(self.unknown)),
            "bad_files": self.bad,
            "skipped": dict(self.skipped),
        }


def overview(source: Source, loader: Loader, batch_size: int, encoder: WordEncoder | None = None) -> Overview:
    """Looks at every part of a source, and draws a few examples of each.

    Args:
      source, batch_size: what `loader` was made of; encoder: of the captions, where there are any.

    Raises:
      ValueError: most of the examples cannot be read.
    """
    components = [component for component in components_of(source) if component.weight > 0]
    peeks: dict[int, Peek] = {}
    examples: dict[int, list[Mapping[str, Any]]] = {number: [] for number in range(len(components))}
    for ahead in range(_AHEAD):
        rows = loader.rows(ahead)
        if rows.component not in peeks:
            peeks[rows.component] = loader.peek(ahead)
        room = SHOWN - len(examples[rows.component])
        for place in rows.places[:room]:
            drawn = loader.row(rows.component, *place)
            loader.skipped.add(0, drawn.bad)
            examples[rows.component].append(drawn.example)
        if len(peeks) == len(components) and all(len(some) >= SHOWN for some in examples.values()):
            break
    total = sum(component.weight for component in components)
    parts = []
    for number, component in enumerate(components):
        size = component.batch_size or batch_size
        shapes = {name: (shape[1:], dtype) for name, shape, dtype in peeks[number].shapes} if number in peeks else {}
        shape, dtype = shapes.get("image", ((), ""))
        parts.append(
            Part(
                component.source,
                size,
                component.weight / total,
                shape,
                dtype,
                tuple(examples[number]),
            )
        )
    captions = [example.get(CAPTION, "") for part in parts for example in part.examples]
    words = list(itertools.chain.from_iterable(caption.lower().split() for caption in captions))
    unknown = () if encoder is None else tuple(word for word in words if not encoder.known_ids([word]).any())
    before = getattr(source, "skipped", None)
    reasons = {} if before is None else dict(itertools.islice(before.reasons.items(), MOST_NAMED))
    bad = 0 if before is None else before.bad
    programs = len({peek.shapes for peek in peeks.values()})
    return Overview(tuple(parts), programs, unknown, len(words), reasons, bad)


def reading_rate(loader: Loader, seconds: float) -> float:
    """Examples a second that a loader gives when nothing else is done, over about so many seconds.

    The first batch is not counted: setting up what reads ahead takes its time.
    """
    next(loader)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds or count == 0:
        count += len(next(loader)["label"])
    return count / (time.perf_counter() - begun)
