"""Memory-mapped files, whose bytes are loaded on access, and a stream interface to them."""

from __future__ import annotations

import io
import mmap
from pathlib import Path

from starflow_jax.core.regular_files import open_file
from starflow_jax.tensor_formats.tensors import TensorFileError


def map_file(path: Path) -> memoryview:
    """Maps a file read-only; the mapping lives as long as any view of it.

    Raises:
      TensorFileError: the path leads to no regular file, or the file is empty or not readable.
    """
    try:
        with open_file(path) as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:  # raised by mmap for an empty file
        raise TensorFileError(f"{path} is empty") from error
    except OSError as error:
        raise TensorFileError(f"{path} cannot be read: {error.strerror or error}") from error


class ViewStream(io.RawIOBase):
    """A seekable, read-only stream over bytes in memory or in a mapped file; it holds no copy of them."""

    def __init__(self, data: memoryview):
        self._data = data
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + (0, self._place, len(self._data))[whence]
        if position < 0:
            raise OSError("seek before the beginning")
        self._place = position
        return position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        part = self._data[self._place : self._place + len(buffer)]
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)

    def read(self, size: int | None = -1) -> bytes:
        rest = max(len(self._data) - self._place, 0)
        size = rest if size is None or size < 0 else min(size, rest)
        part = bytes(self._data[self._place : self._place + size])
        self._place += size
        return part

    def readline(self, size: int | None = -1) -> bytes:
        limit = 4096 if size is None or size < 0 else size  # lines of a pickle's text operations are short
        part = bytes(self._data[self._place : self._place + limit])
        line = part[: part.find(b"\n") + 1] if b"\n" in part else part
        self._place += len(line)
        return line
