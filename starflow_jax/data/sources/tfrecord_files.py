"""Random access to TFRecord files without TensorFlow, by the lengths of their records; checksums are not compared."""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.regular_files import open_file

# The length of a record, a checksum of the length, then the record and its checksum.
_HEAD = struct.Struct("<QI")
_FOOT_BYTES = 4


class Part(NamedTuple):
    """Records of one file: `take` of them after the first `skip`."""

    path: str
    skip: int
    take: int


class TfRecordFiles:
    """The records of parts of files as one sequence.

    Args:
      parts: the parts in order; parse: applied to the bytes of each record.
    """

    def __init__(self, parts: Sequence[Part], parse: Callable[[bytes], Any]):
        self._parts, self._parse = tuple(part for part in parts if part.take), parse
        self._ends = tuple(itertools.accumulate(part.take for part in self._parts))
        self._places: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        """One record.

        Raises:
          ValueError: the file is cut or damaged.
          OSError: it cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record must be 0 to {len(self) - 1}, got {index}")
        number = bisect.bisect_right(self._ends, index)
        part = self._parts[number]
        if number not in self._places:
            self._places[number] = _places(part)
        row = part.skip + index - (self._ends[number] - part.take)
        begin, end = self._places[number][row : row + 2]
        with open_file(part.path) as file:
            file.seek(begin + _HEAD.size)
            data = file.read(end - begin - _HEAD.size - _FOOT_BYTES)
        return self._parse(data)


def _places(part: Part) -> np.ndarray:
    """The positions int64 at which the records of a file begin, up to the end of the last one that is wanted."""
    size = Path(part.path).stat().st_size
    places = np.zeros(part.skip + part.take + 1, np.int64)
    with open_file(part.path) as file:
        for row in range(part.skip + part.take):
            head = file.read(_HEAD.size)
            check(len(head) == _HEAD.size, f"{part.path} must have {part.skip + part.take} records, got {row}")
            length, _ = _HEAD.unpack(head)
            end = int(places[row]) + _HEAD.size + length + _FOOT_BYTES
            check(end <= size, f"{part.path} ends inside record {row}")
            file.seek(end)
            places[row + 1] = end
    return places
