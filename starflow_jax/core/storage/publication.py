"""Publishes a local folder at an address, again and again while it grows, whole each time.

New and changed files are written first, and the list of all files (`manifest`) last, on condition that nobody else has
written it since. Objects that the folder has no more are removed after that. A publication that was interrupted leaves
objects that no list names; it had recorded their names before, and the next owner removes them.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starflow_jax.core.storage.manifest import (
    MANIFEST,
    PENDING,
    File,
    Manifest,
    Pending,
    folder_files,
    read_manifest,
    read_pending,
)
from starflow_jax.core.storage.parts import remove_parts
from starflow_jax.core.storage.retries import Conflict, StoreError
from starflow_jax.core.storage.store import Store, file_checksum

_THREADS = 8
_IN_MEMORY = 2**24  # larger files are sent from disk, in parts
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of checkpoints that Orbax is writing

Seen = tuple[int, int, int]  # inode, size and modification time of a local file
# Of the finished local files, those that this process publishes; and files that others have written to the store.
Selection = tuple[dict[str, Seen], dict[str, File]]


class Publication:
    """The state of a folder in the store, which `publish` brings up to date. One thread at a time calls it.

    Args:
      store: of the address of the folder; folder: the local one.
      published: what is there already; None for a new folder.
      may_write: raises where this process has lost the right to write.
      session, processes: of the list of files (`Manifest`).
      select: chooses among the local files; without it, all of them are published, and nothing else.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        published: Manifest | None = None,
        may_write: Callable[[], None] = lambda: None,
        *,
        session: str | None = None,
        processes: int = 1,
        select: Callable[[dict[str, Seen]], Selection] = lambda local: (local, {}),
    ):
        self._store, self._folder, self._may_write = store, folder, may_write
        self._session, self._processes, self._select = session, processes, select
        self._version = None if published is None else published.version
        self._files = {} if published is None else dict(published.files)
        self._sent: dict[str, Seen] = {}
        if published is not None:
            for name, seen in finished_files(folder).items():
                file = published.files.get(name)
                if file is not None and (seen[1], seen[2]) == (file.size, file.modified_ns):
                    self._sent[name] = seen

    @property
    def version(self) -> str | None:
        """The version of the list of files that this process published or found; None before the first."""
        return self._version

    @property
    def session(self) -> str | None:
        """The session that the list names."""
        return self._session

    @property
    def files(self) -> dict[str, File]:
        """The files of the list."""
        return dict(self._files)

    def announce(self) -> None:
        """Writes the list of files as it is, so that it names this session.

        Raises:
          StoreError: as `publish`.
        """
        self._may_write()
        self._commit(Manifest(self._files, None, self._session, self._processes))

    def publish(self) -> int:
        """Publishes the folder as it is now; returns the number of objects written, those of others included.

        Files whose names or folders begin with a dot, and unfinished checkpoints, are being written and left for later.

        Raises:
          StoreError: the store cannot be written, or somebody else publishes at this address.
        """
        snapshot = self._folder.with_name(f".{self._folder.name}.snapshot")
        shutil.rmtree(snapshot, ignore_errors=True)
        try:
            local, others = self._select(finished_files(self._folder))
            changed = link_files(
                self._folder, snapshot, [name for name in local if self._sent.get(name) != local[name]]
            )
            # What was removed meanwhile is not there.
            local = {name: seen for name, seen in local.items() if self._sent.get(name) == seen} | changed
            gone = [name for name in self._files if name not in local and name not in others]
            theirs = [name for name, file in others.items() if self._files.get(name) != file]
            if not changed and not gone and not theirs:
                return 0
            self._may_write()
            added = tuple(name for name in changed if name not in self._files)
            replaced = tuple(name for name in changed if name in self._files)
            self._store.write(PENDING, Pending(added, replaced, tuple(gone)).to_json())
            sent: dict[str, File] = {}
            # Files that a list names already come last, since readers see them change before the list does.
            for names in (added, replaced):
                with ThreadPoolExecutor(_THREADS) as threads:
                    sent |= zip(names, threads.map(lambda name: self._send(name, snapshot), names), strict=True)
            kept = {name: file for name, file in self._files.items() if name in local and name not in sent}
            files = {name: summed(file, self._folder / name) for name, file in kept.items()} | others | sent
            self._may_write()
            self._commit(Manifest(files, None, self._session, self._processes))
            self._files, self._sent = files, local
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)
        for name in gone:
            self._store.remove(name)
        self._store.remove(PENDING)
        return len(changed) + len(theirs)

    def _send(self, name: str, snapshot: Path) -> File:
        self._may_write()
        return send_file(self._store, name, snapshot / name)

    def _commit(self, manifest: Manifest) -> None:
        try:
            self._version = self._store.write_if(MANIFEST, manifest.to_json(), self._version)
        except Conflict as error:
            raise StoreError(
                f"{self._store.address} could not be published: another process has written it meanwhile"
            ) from error


def send_file(store: Store, name: str, path: Path) -> File:
    """Writes one file to a store; of a file that grows meanwhile, the bytes that are there at the beginning.

    Raises:
      StoreError: the store cannot be written.
    """
    status = path.stat()
    if status.st_size > _IN_MEMORY:
        checksum = file_checksum(path)
        store.send(name, path)
        if path.stat().st_size != status.st_size:
            raise StoreError(f"{store.address / name} could not be written: the file grew meanwhile")
        return File(status.st_size, checksum, status.st_mtime_ns)
    with path.open("rb") as file:
        data = file.read(status.st_size)
    store.write(name, data)
    return File(len(data), zlib.crc32(data), status.st_mtime_ns)


def summed(file: File, path: Path) -> File:
    """A file with its checksum, which is not known where a listing named it."""
    return file if file.checksum is not None else dataclasses.replace(file, checksum=file_checksum(path))


def remove_interrupted(store: Store) -> Manifest | None:
    """Removes what an interrupted publication left; returns the files of the folder, None for an empty address.

    Only the owner of an address may call this.
    """
    pending = read_pending(store)
    manifest = read_manifest(store)
    if manifest is None:
        for name in pending.added:
            store.remove(name)
        files = {name: file for name, file in folder_files(store).files.items() if name not in pending.added}
        manifest = Manifest(files) if files else None
    else:
        remove_parts(store, manifest)
        for name in (*pending.added, *pending.removed):
            if name not in manifest.files:
                store.remove(name)
    # The record of replaced files stays for readers, until the next publication.
    if pending != Pending() and not pending.replaced:
        store.remove(PENDING)
    return manifest


def finished_files(folder: Path) -> dict[str, Seen]:
    """The finished files below a folder, sorted by name."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if _finished(name)]
        for name in files:
            path = Path(root, name)
            if not _finished(name):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # removed meanwhile, with a checkpoint that is not kept
            if stat.S_ISREG(status.st_mode):
                relative = path.relative_to(folder).as_posix()
                found[relative] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return dict(sorted(found.items()))


def _finished(name: str) -> bool:
    return not name.startswith(".") and _UNFINISHED not in name


def link_files(folder: Path, snapshot: Path, names: Sequence[str]) -> dict[str, Seen]:
    """Hard links of the files that are still there, which stay although the originals are removed or replaced."""
    linked: dict[str, Seen] = {}
    for name in names:
        target = snapshot / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            try:
                os.link(folder / name, target)
            except FileNotFoundError:
                continue  # removed meanwhile
            except OSError:  # a file system without links
                shutil.copy2(folder / name, target)
        except FileNotFoundError:
            continue
        status = target.stat()
        linked[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return linked
