"""Random access to the records of many ArrayRecord files, of which a bounded number is open."""

from __future__ import annotations

import bisect
import collections
import itertools
import threading
from collections.abc import Sequence
from typing import Any

from starflow_jax.core.config.checks import check

# Files that one process keeps open. A file that is open keeps its index in memory, up to a hundred bytes a record.
MAX_OPEN = 256
# Without parallel reading, `seek` and `read` take a time that does not grow with the number of records of the file.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 32768


class ArrayRecordFiles:
    """The records of several files as one sequence; a file is opened when one of its records is read.

    Args:
      paths: the files; counts: number of records of each, above 0.
      max_open: number of files that are kept open, the last ones read.
    """

    def __init__(self, paths: Sequence[str], counts: Sequence[int], max_open: int = MAX_OPEN):
        self._paths, self._counts, self._max_open = tuple(paths), tuple(counts), max_open
        self._ends = tuple(itertools.accumulate(counts))
        self._open: collections.OrderedDict[int, _OpenFile] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        """The bytes of one record.

        Raises:
          ValueError: the file does not have as many records as stated.
          RuntimeError: it cannot be opened, or the record is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record must be 0 to {len(self) - 1}, got {index}")
        number = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[number] - self._counts[number])
        try:
            return self._opened(number).read(row)
        except Exception:
            with self._lock:
                self._open.pop(number, None)  # after an error a reader gives no further record
            raise

    def _opened(self, number: int) -> _OpenFile:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        opened = _OpenFile(self._paths[number], self._counts[number])
        with self._lock:
            self._open[number] = opened
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)  # closed once no thread reads from it
        return opened


class _OpenFile:
    """One file, read by one thread at a time."""

    def __init__(self, path: str, count: int):
        from array_record.python.array_record_module import ArrayRecordReader

        self._reader: Any = ArrayRecordReader(path, options=_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES)
        self._lock = threading.Lock()
        found = self._reader.num_records()
        check(found == count, f"{path} must contain {count} records, got {found}")

    def read(self, row: int) -> bytes:
        """The bytes of one record."""
        with self._lock:
            self._reader.seek(row)
            return bytes(self._reader.read())
