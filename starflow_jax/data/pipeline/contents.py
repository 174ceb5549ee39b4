"""What a source holds, as exactly as can be told without decoding files: what kept results hang on.

More than `data.fingerprint`, by which training goes on: that lets files be copied and looks at a part of an array.
Results outlive the command that computed them, and those of other data must never be taken for theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from starflow_jax.data.pipeline.fingerprint import fingerprint, to_values
from starflow_jax.data.pipeline.readable import Subset
from starflow_jax.data.sources.base import ArraySource, Source
from starflow_jax.data.sources.mixture import components_of


def contents_digest(source: Source) -> str:
    """Equal for equal examples, 32 hexadecimal digits.

    Of arrays in memory every value counts. Of files names, sizes and times of change do: one that is rewritten within
    its name, size and time, or whose source tells no times, is not noticed.
    """
    found = hashlib.sha256()
    for part in _parts(source):
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part.data.cast("B")
        found.update(f"{len(data)} ".encode())
        found.update(data)
    return found.hexdigest()[:32]


def _parts(source: Source) -> Iterator[str | np.ndarray]:
    if isinstance(source, Subset):
        yield str(source.places)
        yield from _parts(source.source)
        return
    for component in components_of(source):
        part: Any = component.source
        yield f"{len(part)} {part.levels}"
        if isinstance(part, ArraySource):
            yield str(part.images.shape)
            yield from (np.ascontiguousarray(array) for array in (part.labels, part.images))
            continue
        yield str([held[1:] for held in to_values(fingerprint(part))])
        signature = getattr(getattr(part, "collection", None), "signature", None)
        if signature is not None:
            yield str(signature())
