"""A summary of the data of an experiment in numbers and examples, for `starflow data`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starflow_jax.data.decoding.bad_examples import MAX_NAMED
from starflow_jax.data.pipeline.loader import Loader, Peek
from starflow_jax.data.sources.base import CAPTION, Source
from starflow_jax.data.sources.mixture import components_of
from starflow_jax.models.text.words import WordEncoder

# Batches searched for the first one of every source, and the number of examples read of each.
_AHEAD = 20_000
SHOWN = 6


@dataclass(frozen=True, eq=False)
class Part:
    """One source, or one bucket of one.

    Attributes:
      source: the examples; batch_size: rows of its batches; share: share of the batches.
      shape: shape of an example; dtype: dtype of its pixels or latents.
      examples: the first few training examples, with their captions.
    """

    source: Source
    batch_size: int
    share: float
    shape: tuple[int, ...]
    dtype: str
    examples: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(self.source)


@dataclass(frozen=True, eq=False)
class Overview:
    """The summary of all parts.

    Attributes:
      programs: number of batch shapes, for each of which a training step is compiled.
      unknown: words of the captions read that are not in the vocabulary; words: number of words read.
      skipped: reasons why files could not be read, by name; bad: number of such files.
    """

    parts: tuple[Part, ...]
    programs: int
    unknown: tuple[str, ...]
    words: int
    skipped: Mapping[str, str]
    bad: int

    def rows(self) -> list[list[str]]:
        """A table."""
        head = ["source", "examples", "shape", "batch", "share of batches", "batches per epoch"]
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
        """Remarks, one sentence each."""
        notes = [f"{self.programs} shapes of batches, for each of which a program is compiled"]
        for part in self.parts:
            if part.count < part.batch_size:
                notes.append(f"{part.name} has fewer examples than a batch, which therefore repeats some of them")
        if self.unknown:
            notes.append(
                f"{len(self.unknown)} of {self.words} words of the captions read are not in the vocabulary and are "
                f"skipped: {', '.join(sorted(set(self.unknown))[:10])}"
            )
        if self.bad:
            notes.append(f"{self.bad} files cannot be read and are skipped")
        return notes

    def figures(self) -> dict[str, Any]:
        """The summary as JSON values."""
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
    """Summarises every part of a source, and reads a few training examples of each.

    Args:
      source, batch_size: the arguments of `train_loader` for `loader`; encoder: of the captions, if any.

    Raises:
      ValueError: most of the examples cannot be read.
    """
    components = [component for component in components_of(source) if component.weight > 0]
    peeks: dict[int, Peek] = {}
    examples: dict[int, list[Mapping[str, Any]]] = {index: [] for index in range(len(components))}
    for ahead in range(_AHEAD):
        rows = loader.rows(ahead)
        if rows.component not in peeks:
            peeks[rows.component] = loader.peek(ahead)
        room = SHOWN - len(examples[rows.component])
        for example in rows.examples[:room]:
            row = loader.row(rows.component, *example)
            loader.skipped.add(0, row.bad)
            examples[rows.component].append(row.example)
        if len(peeks) == len(components) and all(len(some) >= SHOWN for some in examples.values()):
            break
    total = sum(component.weight for component in components)
    parts = []
    for index, component in enumerate(components):
        size = component.batch_size or batch_size
        shapes = {name: (shape[1:], dtype) for name, shape, dtype in peeks[index].shapes} if index in peeks else {}
        shape, dtype = shapes.get("image", ((), ""))
        parts.append(
            Part(
                component.source,
                size,
                component.weight / total,
                shape,
                dtype,
                tuple(examples[index]),
            )
        )
    captions = [example.get(CAPTION, "") for part in parts for example in part.examples]
    words = list(itertools.chain.from_iterable(caption.lower().split() for caption in captions))
    unknown = () if encoder is None else tuple(word for word in words if not encoder.known_ids([word]).any())
    before = getattr(source, "skipped", None)
    reasons = {} if before is None else dict(itertools.islice(before.reasons.items(), MAX_NAMED))
    bad = 0 if before is None else before.bad
    programs = len({peek.shapes for peek in peeks.values()})
    return Overview(tuple(parts), programs, unknown, len(words), reasons, bad)


def reading_rate(loader: Loader, seconds: float) -> float:
    """Examples per second of a loader alone, measured over about `seconds` seconds.

    The first batch is not counted, as it includes starting threads or processes.
    """
    next(loader)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds or count == 0:
        count += len(next(loader)["label"])
    return count / (time.perf_counter() - start)
