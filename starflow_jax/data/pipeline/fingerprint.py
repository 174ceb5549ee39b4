"""Fingerprint of the data of a run: the number of examples, and a digest of their names and sizes.

It does not include paths, so that a folder may move, and no file is decoded: a file that changes while its name and
size stay the same is not detected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from starflow_jax.data.sources.base import Source, lines_digest
from starflow_jax.data.sources.mixture import components_of, example_spec


class SourceFingerprint(NamedTuple):
    """Fingerprint of one source.

    Attributes:
      source: its name, for messages only; examples: number of examples; digest: digest of their names and sizes.
    """

    source: str
    examples: int
    digest: str


def fingerprint(source: Source) -> tuple[SourceFingerprint, ...]:
    """Fingerprints of the sources that are read, one for each component of a mixture.

    Of a source without the method `digest()`, only the shapes and dtypes of its arrays are included.
    """
    parts = [component.source for component in components_of(source) if component.weight > 0]
    return tuple(SourceFingerprint(part.name, len(part), _digest(part)) for part in parts)


def difference(then: Sequence[SourceFingerprint], now: Sequence[SourceFingerprint]) -> tuple[str, str, str] | None:
    """The first source that changed: its name, its former and its present contents; None where nothing changed."""
    if len(then) != len(now):
        before, after = (
            f"{len(fingerprints)} sources of {sum(entry.examples for entry in fingerprints)} examples"
            for fingerprints in (then, now)
        )
        return "", before, after
    for old, new in zip(then, now, strict=True):
        if old.examples != new.examples:
            return new.source, f"{old.examples} examples", f"{new.examples}"
        if old.digest != new.digest:
            return new.source, f"{old.examples} examples", "equally many with other names, sizes or shapes"
    return None


def to_values(fingerprints: Sequence[SourceFingerprint]) -> list[list[str | int]]:
    """Fingerprints as JSON values."""
    return [list(entry) for entry in fingerprints]


def from_values(values: object) -> tuple[SourceFingerprint, ...]:
    """The inverse of `to_values`; raises ValueError for any other values."""
    try:
        return tuple(SourceFingerprint(str(source), int(examples), str(digest)) for source, examples, digest in values)  # type: ignore[attr-defined]
    except TypeError as error:
        raise ValueError(f"a fingerprint of the data must be a list of lists, got {values!r}") from error


def _digest(source: Source) -> str:
    digest: Callable[[], str] | None = getattr(source, "digest", None)
    if digest is not None:
        return digest()
    spec = example_spec(source)
    return lines_digest([json.dumps([name, shape, str(dtype)]) for name, (shape, dtype) in sorted(spec.items())])
