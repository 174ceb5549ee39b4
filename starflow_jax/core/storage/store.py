"""The objects below one address: listed, read, written and removed through fsspec, each call repeated if it fails."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.conditional_writes import GCS, has_preconditions, version_of, write_if
from starflow_jax.core.storage.retries import Conflict, Retries, StoreError, store_error

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_EXTRAS = {"s3fs": "s3", "gcsfs": "gcs"}
# Names that fsspec gives to local files, to files inside of others, and to caches of others.
_NO_STORES = (
    "file", "local", "data", "dir", "tar", "zip", "libarchive", "reference", "generic", "filecache", "simplecache",
    "blockcache", "cached", "asynclocal", "asyncwrapper", "async_wrapper", "dask", "git", "jlab", "jupyter", "pyscript",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stored:
    """An object: its bytes, its version in the store, and when it was written, in nanoseconds since 1970."""

    size: int
    version: str
    modified_ns: int


@dataclasses.dataclass(frozen=True)
class Store:
    """The store of an address.

    Attributes:
      address: a folder or an object; names in the methods are relative to it, "" is itself.
      files: the file system of fsspec; retries: of every call.
    """

    address: Address
    files: Any
    retries: Retries = dataclasses.field(default_factory=Retries)

    @property
    def compares_versions(self) -> bool:
        """Whether `write_if` is decided by the store itself, and not by reading back."""
        return has_preconditions(self.address.scheme)

    def at(self, name: str) -> Store:
        """The same store at a name below this address."""
        return dataclasses.replace(self, address=self.address / name)

    def parent(self) -> Store:
        """The same store at the folder that contains this address."""
        return dataclasses.replace(self, address=self.address.parent)

    def list(self) -> dict[str, Stored]:
        """The objects below the address by name, sorted; empty where there are none. A listing may lag behind."""
        root = self._path("")

        def found() -> dict[str, Any]:
            self.files.invalidate_cache()
            try:
                return dict(self.files.find(root, detail=True))
            except FileNotFoundError:
                return {}

        with self._named("cannot be listed"):
            entries = self.retries(found)
        prefix = root.rstrip("/") + "/"
        names = {path[len(prefix) :]: entry for path, entry in entries.items() if path.startswith(prefix)}
        return {
            name: _stored(entry)
            for name, entry in sorted(names.items())
            if name and not name.endswith("/") and entry.get("type", "file") == "file"
        }

    def facts(self, name: str = "") -> Stored | None:
        """The size and version of an object; None where there is none, or a folder."""
        path = self._path(name)

        def asked() -> dict[str, Any]:
            self.files.invalidate_cache()
            return dict(self.files.info(path))

        with self._named("cannot be read", name):
            try:
                entry = self.retries(asked)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return _stored(entry) if entry.get("type", "file") == "file" else None

    def read(self, name: str = "", start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of an object, or those from `start` to `end`, which may go beyond its end.

        Raises:
          FileNotFoundError: there is no such object. StoreError: it cannot be read.
        """
        path = self._path(name)
        with self._named("cannot be read", name):
            return bytes(self.retries(lambda: self.files.cat_file(path, start=start, end=end)))

    def fetch(self, name: str, target: Path, size: int) -> tuple[int, int]:
        """Copies an object into the new file `target`; returns its size and CRC-32.

        Args:
          size: that is expected; another one is accepted only if the store says it, too.
        """
        path = self._path(name)

        def copied() -> tuple[int, int]:
            self.files.get_file(path, str(target))
            found = target.stat().st_size
            facts = None if found == size else self.facts(name)
            if found != (size if facts is None else facts.size):
                raise OSError(f"{found} of {size if facts is None else facts.size} bytes arrived")
            return found, file_checksum(target)

        with self._named("cannot be read", name):
            return self.retries(copied)

    def write(self, name: str, data: bytes) -> None:
        """Writes an object; object stores show it whole or not at all."""
        path = self._path(name)
        with self._named("cannot be written", name):
            self.retries(lambda: self.files.pipe_file(path, data))

    def send(self, name: str, source: Path) -> None:
        """Writes an object with the contents of a file that does not change meanwhile."""
        path = self._path(name)
        with self._named("cannot be written", name):
            self.retries(lambda: self.files.put_file(str(source), path))

    def write_if(self, name: str, data: bytes, seen: str | None) -> str:
        """Writes an object if it is absent (`seen` None) or still of the version `seen`; returns its new version.

        Raises:
          Conflict: somebody else wrote it.
        """
        path = self._path(name)
        with self._named("cannot be written", name):
            try:
                self.retries(lambda: write_if(self.files, self.address.scheme, path, data, seen))
            except Conflict:
                # An earlier attempt may have arrived although its answer did not.
                if self._content(name) != data:
                    raise
            facts = self.facts(name)
        if facts is None:
            raise Conflict(path)
        return facts.version

    def remove(self, name: str) -> None:
        """Removes an object, if there is one."""
        path = self._path(name)

        def removed() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.files.rm_file(path)

        with self._named("cannot be removed", name):
            self.retries(removed)

    def _content(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def _path(self, name: str) -> str:
        return str(self.files._strip_protocol(str(self.address / name)))

    @contextlib.contextmanager
    def _named(self, problem: str, name: str = "") -> Iterator[None]:
        """Turns errors of the library into StoreErrors that name the address; FileNotFoundError and Conflict pass."""
        try:
            yield
        except (StoreError, FileNotFoundError, Conflict):
            raise
        except Exception as error:
            raise store_error(f"{self.address / name} {problem}", error) from error


def open_store(address: Address, retries: Retries | None = None) -> Store:
    """The store of an address. Credentials are those that the store's library finds in the environment.

    Raises:
      ValueError: no library is installed for the scheme, or it is not that of a store.
    """
    import fsspec

    scheme = address.scheme
    if scheme in _NO_STORES:
        raise ValueError(f"{address} must be the address of a store; {scheme}:// is none, and a path has no scheme")
    if scheme in GCS:
        # gcsfs would ask for the kind of the bucket at every call where it may not know it. Zonal buckets need "true".
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        files = fsspec.filesystem(scheme)
    except ImportError as error:
        package = _PACKAGES.get(scheme, "")
        extra = f"pip install 'starflow-jax[{_EXTRAS[package]}]'" if package else str(error).splitlines()[0]
        needs = f"the package {package}" if package else "a package of fsspec"
        raise ValueError(f"{address} needs {needs}: {extra}") from error
    except ValueError as error:
        raise ValueError(f"{address} must have the scheme of a store, such as gs or s3, got {scheme!r}") from error
    except Exception as error:
        raise store_error(f"{address} cannot be opened", error) from error
    # gcsfs repeats every call six times itself, over half a minute.
    return Store(address, files, retries or Retries(attempts=2 if scheme in GCS else 5))


def file_checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(2**22):
            value = zlib.crc32(part, value)
    return value


def _stored(entry: dict[str, Any]) -> Stored:
    version = version_of(entry)
    return Stored(int(entry.get("size") or 0), version, _modified_ns(entry, version))


def _modified_ns(entry: dict[str, Any], version: str) -> int:
    """When an object was written; where the store does not say, a number that follows from its version."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = entry.get(name)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime.datetime):
            value = value.timestamp()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return int(value * 1000) * 1_000_000  # every file system can store milliseconds
    return zlib.crc32(version.encode()) * 1_000_000_000
