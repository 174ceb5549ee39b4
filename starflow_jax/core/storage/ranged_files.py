"""Files in a store that are read by ranges of bytes, without a local copy."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace
from typing import BinaryIO, cast

from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.core.storage.store import open_store

_AHEAD = 2**18  # bytes of a read, so that the headers of small members of a tar come together


@dataclasses.dataclass(frozen=True, order=True)
class StoredFile:
    """A file in a store. It can be pickled, and each process opens the store by itself.

    Attributes:
      key: of the object; scheme, bucket: of its address; size, modified_ns: as listed.
    """

    key: str
    scheme: str
    bucket: str
    size: int
    modified_ns: int

    @classmethod
    def at(cls, address: Address, size: int, modified_ns: int) -> StoredFile:
        """The file at an address."""
        return cls(address.key, address.scheme, address.bucket, size, modified_ns)

    @property
    def address(self) -> Address:
        """Its address."""
        return Address(self.scheme, self.bucket, self.key)

    @property
    def name(self) -> str:
        """Its last name."""
        return self.address.name

    def __str__(self) -> str:
        return str(self.address)

    def stat(self) -> SimpleNamespace:
        """Its size and time under the names of `os.stat`."""
        return SimpleNamespace(st_size=self.size, st_mtime_ns=self.modified_ns)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from `offset` on, fewer than `size` at the end; one request.

        Raises:
          StoreError: the store cannot be read. OSError: the file is not there, or not of the size that was listed.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        store = open_store(self.address)
        try:
            return store.read("", offset, end)
        except StoreError as error:
            # Stores answer with errors of many kinds where a range begins behind the end of an object.
            facts = store.facts()
            if facts is None or facts.size != self.size:
                found = "is not there" if facts is None else f"has {facts.size} bytes instead of {self.size}"
                raise OSError(f"{self} {found}") from error
            raise

    def open(self, mode: str = "rb") -> BinaryIO:
        """Opens it for reading bytes, at any position."""
        assert mode == "rb"
        return cast(BinaryIO, io.BufferedReader(_Ranges(self), _AHEAD))


class _Ranges(io.RawIOBase):
    """Reads a file by one request for each call."""

    def __init__(self, file: StoredFile):
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise OSError("a position before the beginning")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
