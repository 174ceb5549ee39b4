"""Results of an unfinished cell: an append-only file in which an incomplete last record is detected and dropped.

One record for each batch: a header, the values, a checksum. A process that is killed while it writes leaves a record
that is too short or has a wrong checksum; reading ends before it, and the next record overwrites it.
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
    """The complete records of a file.

    Attributes:
      values: float64 [rows, columns], from row 0 on without a gap.
      seconds: computing time; chunks: number of records; size: bytes of complete records; incomplete: bytes after them.
    """

    values: np.ndarray
    seconds: float
    chunks: int
    size: int
    incomplete: int

    @property
    def rows(self) -> int:
        """The row at which to continue."""
        return len(self.values)


def read_chunks(path: Path, columns: int) -> Computed:
    """The records of a file up to the first that is incomplete or not contiguous; empty where there is no file.

    Args:
      columns: number of values of a row; reading ends at a record of another width.

    Raises:
      OSError: the file exists and cannot be read.
    """
    data = path.read_bytes() if path.exists() else b""
    parts: list[np.ndarray] = []
    rows, seconds, offset = 0, 0.0, 0
    while offset + _HEAD.size + _SUM.size <= len(data):
        magic, first, count, width, took = _HEAD.unpack_from(data, offset)
        end = offset + _HEAD.size + 8 * count * width
        if magic != _MAGIC or first != rows or width != columns or end + _SUM.size > len(data):
            break
        if _SUM.unpack_from(data, end)[0] != zlib.crc32(data[offset:end]):
            break
        parts.append(np.frombuffer(data, np.float64, count * width, offset + _HEAD.size).reshape(count, width))
        rows, seconds, offset = rows + count, seconds + took, end + _SUM.size
    values = np.concatenate(parts) if parts else np.zeros((0, columns))
    return Computed(values, seconds, len(parts), offset, len(data) - offset)


class ChunkWriter:
    """Appends records to a file, each flushed to disk before the call returns. A context manager.

    Args:
      size: bytes of complete records; the file is truncated to it.
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
        """Appends values [rows, columns] of the rows from `first` on.

        Raises:
          OSError: for example a full disk; the record is then incomplete, and the next reading drops it.
        """
        check(values.ndim == 2, f"values must be [rows, columns], got shape {list(values.shape)}")
        payload = np.ascontiguousarray(values, np.float64).tobytes()
        record = _HEAD.pack(_MAGIC, first, *values.shape, seconds) + payload
        record += _SUM.pack(zlib.crc32(record))
        while record:
            record = record[os.write(self._file, record) :]
        os.fsync(self._file)
