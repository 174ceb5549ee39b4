"""Sizes and durations of files, read from their headers once and cached in an index file."""

from __future__ import annotations

import array
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped
from starflow_jax.data.decoding.buckets import nearest_aspect_ratio

_THREADS = 8
# Sizes are those of images and videos as they are displayed; in version 1 rotations were not applied to all formats.
_FORMAT = "starflow index 2"


def scan_files(
    count: int, fact: Callable[[int], Sequence[float]], signature: str, index: Path | None, skipped: Skipped
) -> list[list[float] | None]:
    """Evaluates `fact(i)`, a few numbers, for every file; None where it cannot be read.

    Args:
      count: number of files; fact: reads the header of one, raises BadExample; called from several threads.
      signature: digest of the files; an index file with another signature is replaced.
      index: JSON file that caches the facts; None for none.
      skipped: counts and names the files that cannot be read.

    Raises:
      ValueError: the index cannot be written.
    """
    facts = _read(index, signature, count)
    if facts is None:
        with ThreadPoolExecutor(_THREADS) as pool:
            facts = list(pool.map(lambda i: _try(fact, i), range(count), chunksize=64))
        if index is not None:
            _write(index, {"format": _FORMAT, "signature": signature, "facts": facts})
    for entry in facts:
        bad = isinstance(entry, dict)
        # Not `skipped.add`: the caller reports a folder most of whose files cannot be read.
        skipped.tried += 1
        if bad:
            skipped.bad += 1
            skipped.reasons.setdefault(entry["name"], entry["reason"])
    return [None if isinstance(entry, dict) else entry for entry in facts]


def by_bucket(sizes: Sequence[Sequence[float] | None], buckets: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The increasing indices of the files of each non-empty bucket, from their (rows, columns, ...)."""
    nearest: dict[tuple[int, int], str] = {}
    members: dict[str, list[int]] = {bucket: [] for bucket in buckets}
    for index, size in enumerate(sizes):
        if size is not None:
            shape = (int(size[0]), int(size[1]))
            if shape not in nearest:
                nearest[shape] = nearest_aspect_ratio(*shape, buckets)
            members[nearest[shape]].append(index)
    return {bucket: np.asarray(indices, np.int64) for bucket, indices in members.items() if indices}


def by_bucket_of_arrays(sizes: Iterable[np.ndarray], buckets: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The same from arrays of (rows, columns), int [n, 2] each, one after another; at most 2**32 rows in all.

    The indices are uint32, and grow in place, so that memory has four bytes for each.

    Raises:
      ValueError: more rows.
    """
    members = {bucket: array.array("I") for bucket in buckets}
    begin = 0
    for rows in sizes:
        pairs, inverse = np.unique(rows.astype(np.int64) @ np.asarray([2**31, 1]), return_inverse=True)
        nearest = [nearest_aspect_ratio(int(pair) >> 31, int(pair) % 2**31, buckets) for pair in pairs]
        chosen = np.asarray([buckets.index(bucket) for bucket in nearest])[inverse]
        end = begin + len(rows)
        check(end <= 2**32, f"a source of data must have at most {2**32} examples for buckets, got {end}")
        for number, bucket in enumerate(buckets):
            members[bucket].frombytes((begin + np.flatnonzero(chosen == number)).astype(np.uint32).tobytes())
        begin = end
    return {bucket: np.frombuffer(indices, np.uint32) for bucket, indices in members.items() if indices}


def _try(fact: Callable[[int], Sequence[float]], index: int) -> Any:
    try:
        return list(fact(index))
    except BadExample as error:
        return {"name": error.name, "reason": error.reason}


def _read(index: Path | None, signature: str, count: int) -> list[Any] | None:
    """The facts of an index file; None where it is missing, damaged, or of other files."""
    if index is None or not index.is_file():
        return None
    try:
        values = json.loads(index.read_text(encoding="utf-8"))
        fits = values["format"] == _FORMAT and values["signature"] == signature and len(values["facts"]) == count
        facts = values["facts"] if fits else None
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return None
    return facts if facts is not None and all(map(_is_fact, facts)) else None


def _is_fact(value: Any) -> bool:
    if isinstance(value, dict):
        return isinstance(value.get("name"), str) and isinstance(value.get("reason"), str)
    numbers = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    return numbers and len(value) >= 2 and min(value[:2]) >= 1


def _write(index: Path, values: dict[str, Any]) -> None:
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        write_text(index, json.dumps(values))
    except OSError as error:
        raise ValueError(f"index {index} cannot be written: {error.strerror or error}") from error
