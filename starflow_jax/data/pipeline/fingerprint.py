"""What data a run was trained on, in a few bytes: how many examples, and a digest of their names and sizes.

No path is part of it, so that a folder may move, and nothing is decoded for it: a file whose bytes change while its
name and size stay is not noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from starflow_jax.data.sources.base import Source
from starflow_jax.data.sources.mixture import components_of, example_spec


class Held(NamedTuple):
    """What one source held.

    Attributes:
      source: what it was called, for sentences only; examples: how many; digest: of what they are.
    """

    source: str
    examples: int
    digest: str


def fingerprint(source: Source) -> tuple[Held, ...]:
    """What the sources that are read hold, one entry for each component of a mixture.

    A source says by `digest()` what it holds; without that, shapes and dtypes of its arrays are all that is known.
    """
    parts = [component.source for component in components_of(source) if component.weight > 0]
    return tuple(Held(part.name, len(part), _digest(part)) for part in parts)


def digest_of(lines: Iterable[str]) -> str:
    """A digest of some lines, in their order."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:32]


def difference(then: Sequence[Held], now: Sequence[Held]) -> tuple[str, str, str] | None:
    """The first source that changed: what it is called, what it held, what it holds; None where nothing did."""
    if len(then) != len(now):
        held, holds = (f"{len(all)} sources of {sum(one.examples for one in all)} examples" for all in (then, now))
        return "", held, holds
    for old, new in zip(then, now, strict=True):
        if old.examples != new.examples:
            return new.source, f"{old.examples} examples", f"{new.examples}"
        if old.digest != new.digest:
            return new.source, f"{old.examples} examples", "as many of other names, sizes or shapes"
    return None


def to_values(held: Sequence[Held]) -> list[list[str | int]]:
    """As JSON values."""
    return [list(one) for one in held]


def from_values(values: object) -> tuple[Held, ...]:
    """From JSON values; raises ValueError for any others."""
    try:
        return tuple(Held(str(source), int(examples), str(digest)) for source, examples, digest in values)  # type: ignore[attr-defined]
    except TypeError as error:
        raise ValueError(f"what the data held must be a list of lists, got {values!r}") from error


def _digest(source: Source) -> str:
    own = getattr(source, "digest", None)
    if own is not None:
        return str(own())
    spec = example_spec(source)
    return digest_of([json.dumps([name, shape, str(dtype)]) for name, (shape, dtype) in sorted(spec.items())])
