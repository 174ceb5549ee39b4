"""What a cell has computed so far: a file that only grows, whose torn end is noticed and dropped.

One record a batch: a header, the numbers, a checksum. A process that is killed while it writes leaves a record that is
too short, or whose checksum is wrong; reading ends before it, and the next record is written over it.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from starflow_jax.core.config.checks import check

_MAGIC = b"SFS1"
# Magic, first row, rows, columns, seconds; then the payload, float64 [rows, columns]; then a CRC-32 of both.
_HEAD = struct.Struct("<4sQQQd")
_SUM = struct.Struct("<I")


@dataclasses.dataclass(frozen=True, eq=False)
class Computed:
    """The whole records of a file.

    Attributes:
      values: float64 [rows, columns], from row 0 on without a gap.
      seconds: that computing them took; chunks: records; size: bytes that are whole; torn: bytes after them.
    """

    values: np.ndarray
    seconds: float
    chunks: int
    size: int
    torn: int

    @property
    def rows(self) -> int:
        """The row to go on with."""
        return len(self.values)


def read_chunks(path: Path, columns: int) -> Computed:
    """What a file holds up to the first record that is not whole or does not follow; nothing where there is none.

    Args:
      columns: numbers of a row; a record of another width ends the reading.

    Raises:
      OSError: a file that is there and cannot be read.
    """
    data = path.read_bytes() if path.exists() else b""
    parts: list[np.ndarray] = []
    rows, seconds, place = 0, 0.0, 0
    while place + _HEAD.size + _SUM.size <= len(data):
        magic, first, count, width, took = _HEAD.unpack_from(data, place)
        end = place + _HEAD.size + 8 * count * width
        if magic != _MAGIC or first != rows or width != columns or end + _SUM.size > len(data):
            break
        if _SUM.unpack_from(data, end)[0] != zlib.crc32(data[place:end]):
            break
        parts.append(np.frombuffer(data, np.float64, count * width, place + _HEAD.size).reshape(count, width))
        rows, seconds, place = rows + count, seconds + took, end + _SUM.size
    values = np.concatenate(parts) if parts else np.zeros((0, columns))
    return Computed(values, seconds, len(parts), place, len(data) - place)


class ChunkWriter:
    """Appends records to a file, each on the disk before the call returns. A context manager.

    Args:
      size: bytes that are whole; what comes after them is cut off.
    """

    def __init__(self, path: Path, size: int):
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        os.ftruncate(self._file, size)
        os.lseek(self._file, size, os.SEEK_SET)

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def append(self, first: int, values: np.ndarray, seconds: float) -> None:
        """Rows [rows, columns] from row `first` on.

        Raises:
          OSError: the disk is full, for example; the record is then torn, and the next reading drops it.
        """
        check(values.ndim == 2, f"values must be [rows, columns], got shape {list(values.shape)}")
        payload = np.ascontiguousarray(values, np.float64).tobytes()
        record = _HEAD.pack(_MAGIC, first, *values.shape, seconds) + payload
        record += _SUM.pack(zlib.crc32(record))
        while record:
            record = record[os.write(self._file, record) :]
        os.fsync(self._file)
