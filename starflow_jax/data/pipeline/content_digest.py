"""Digest of the contents of a source without decoding files, the key of stored results.

It is stricter than `data.pipeline.fingerprint`, by which training resumes, allows files to be copied, and reads a part
of an array: stored results must never be used for other data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from starflow_jax.data.decoding.image_decoding import DECODING_VERSION
from starflow_jax.data.pipeline.fingerprint import fingerprint, to_values
from starflow_jax.data.pipeline.readable_subset import Subset
from starflow_jax.data.sources.base import ArraySource, Source
from starflow_jax.data.sources.mixture import components_of


def contents_digest(source: Source) -> str:
    """Equal for equal examples, 32 hexadecimal digits.

    Every value of arrays in memory is included, and the names, sizes and modification times of files. A file that is
    rewritten with the same name, size and time is not detected, nor one whose source does not know its times.
    """
    digest = hashlib.sha256()
    for part in _parts(source):
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part.data.cast("B")
        digest.update(f"{len(data)} ".encode())
        digest.update(data)
    return digest.hexdigest()[:32]


def _parts(source: Source) -> Iterator[str | np.ndarray]:
    if isinstance(source, Subset):
        yield str(source.indices)
        yield from _parts(source.source)
        return
    for component in components_of(source):
        part: Any = component.source
        yield f"{len(part)} {part.levels}"
        if isinstance(part, ArraySource):
            yield str(part.images.shape)
            yield from (np.ascontiguousarray(array) for array in (part.labels, part.images))
            continue
        background = getattr(part, "background", None)
        if background is not None:  # files that are decoded
            yield f"decoding {DECODING_VERSION} {background}"
        yield str([entry[1:] for entry in to_values(fingerprint(part))])
        signature = getattr(getattr(part, "collection", None), "signature", None)
        if signature is not None:
            yield str(signature())
