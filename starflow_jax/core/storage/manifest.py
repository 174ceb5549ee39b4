"""The list of the files of a published folder, which is written last: it is what makes them a whole.

A store has no folders and renames nothing, and its listing may lag. A reader therefore takes the names, sizes and
checksums from one object, and ignores objects that it does not name. A folder that somebody copied to the store by
other means has no such object, and is what the listing says.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from starflow_jax.core.regular_files import parse_json
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.core.storage.store import Store

MANIFEST = ".starflow-files.json"
PENDING = ".starflow-pending.json"
LEASE = ".starflow-lease.json"
OWN = (MANIFEST, PENDING, LEASE)
PART = ".starflow-part-"  # and a number: what another process than the first has written to the folder
_FORMAT = "starflow files 1"
_MAX_BYTES = 2**30
_MOST = 2**20  # processes


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a folder: its bytes, their CRC-32 (None where only a listing is known), and a version.

    Attributes:
      modified_ns: when it was written, in nanoseconds since 1970.
    """

    size: int
    checksum: int | None
    modified_ns: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The files of a folder by name.

    Attributes:
      files: by their names relative to the folder; version: of the object that lists them, None if a listing did.
      session: of the processes that write the folder together, None for a single process; processes: how many.
    """

    files: dict[str, File]
    version: str | None = None
    session: str | None = None
    processes: int = 1

    def to_json(self) -> bytes:
        """The content of the object."""
        content: dict[str, Any] = {"format": _FORMAT, "files": to_rows(self.files)}
        if self.session is not None:
            content |= {"session": self.session, "processes": self.processes}
        return json.dumps(content, indent=0).encode()


def read_manifest(store: Store) -> Manifest | None:
    """The list that the publication of the folder wrote last; None where there is none.

    Raises:
      StoreError: it cannot be read, or is not such a list.
    """
    facts = store.facts(MANIFEST)
    if facts is None:
        return None
    try:
        values = parse_json(store.read(MANIFEST, 0, _MAX_BYTES))
        if values["format"] != _FORMAT:
            raise ValueError("another format")
        files = from_rows(values["files"])
        session, processes = values.get("session"), values.get("processes", 1)
        if not isinstance(session, str | None) or not isinstance(processes, int) or not 1 <= processes <= _MOST:
            raise ValueError("a session of another kind")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{store.address / MANIFEST} is not the list of the files of a folder") from error
    return Manifest(files, facts.version, session, processes)


def to_rows(files: dict[str, File]) -> dict[str, list[int | None]]:
    """Files as a JSON value, sorted by name."""
    return {name: [file.size, file.checksum, file.modified_ns] for name, file in sorted(files.items())}


def from_rows(rows: Any) -> dict[str, File]:
    """Files from a JSON value; raises ValueError, TypeError or AttributeError for another one."""
    return {checked_name(name): File(*_integers(row)) for name, row in rows.items()}


def folder_files(store: Store) -> Manifest:
    """The files of a folder: those of its list, or of the store's listing where it has none."""
    manifest = read_manifest(store)
    if manifest is not None:
        return manifest
    names = {name: one for name, one in store.list().items() if name not in OWN and not name.startswith(PART)}
    listed = {name: File(one.size, None, one.modified_ns) for name, one in names.items()}
    return Manifest({checked_name(name): file for name, file in listed.items()})


@dataclasses.dataclass(frozen=True)
class Pending:
    """What a publication is doing, or was doing when it was interrupted, as it recorded before it began.

    Attributes:
      added, replaced, removed: names of files.
    """

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """The content of the object."""
        return json.dumps(dataclasses.asdict(self)).encode()


def read_pending(store: Store) -> Pending:
    """The record of a publication that is not complete; an empty one where there is none.

    Raises:
      StoreError: it cannot be read.
    """
    try:
        values = parse_json(store.read(PENDING, 0, _MAX_BYTES))
        return Pending(*(tuple(map(checked_name, values[name])) for name in ("added", "replaced", "removed")))
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return Pending()


def _integers(row: Any) -> tuple[int, int, int]:
    size, checksum, modified = row
    if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in row):
        raise ValueError("a row of other values than numbers")
    return size, checksum, modified


def checked_name(name: Any) -> str:
    """A name that stays below its folder; lists and objects are written by others.

    Raises:
      ValueError: another name.
    """
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise ValueError(f"the name {name!r} cannot be that of a file below a folder")
    return str(name)
