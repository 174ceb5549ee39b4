"""A local folder that a command works in, and that is published at an address while it does.

The local folder begins as a copy of that in the store. Where a process of this machine was killed and nobody has
published since, it begins as that process left it, which may be ahead. A thread publishes it every few seconds, so that
a checkpoint or a batch of results that is complete on disk is soon complete in the store, and the computation does not
wait for it. Leaving the folder publishes it once more, and waits.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starflow_jax.core.regular_files import read_text
from starflow_jax.core.storage.addresses import Address, address_text
from starflow_jax.core.storage.copies import fetch_files
from starflow_jax.core.storage.lease import Lease, Timing
from starflow_jax.core.storage.local_moves import locked, move_over
from starflow_jax.core.storage.manifest import OWN, Manifest, read_manifest, read_pending
from starflow_jax.core.storage.places import WORK, local_place, shown, storage_folder
from starflow_jax.core.storage.publication import Publication, remove_interrupted
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.core.storage.store import Store, open_store

EVERY_VARIABLE = "STARFLOW_STORAGE_SECONDS"  # between publications of a folder in use
_DEFAULT_SECONDS = 15.0


def seconds_between_publications() -> float:
    """How often a folder in use is published: $STARFLOW_STORAGE_SECONDS, or 15.

    Raises:
      ValueError: it is not a number from 0.1 to 86400.
    """
    text = os.environ.get(EVERY_VARIABLE, "")
    try:
        seconds = float(text) if text else _DEFAULT_SECONDS
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= 86_400:
        raise ValueError(f"{EVERY_VARIABLE} must be a number of seconds from 0.1 to 86400, got {text!r}")
    return seconds


def publish_often(
    publish: Callable[[], None], seconds: float, stopped: threading.Event, say: Callable[[str], None]
) -> None:
    """Calls `publish` every few seconds until `stopped` is set, and reports errors, at most once a minute.

    Args:
      say: prints a sentence on a problem that does not end the command.
    """
    told = -float("inf")
    while not stopped.wait(seconds):
        try:
            publish()
        except FileNotFoundError:
            continue  # a file was removed meanwhile
        except OSError as error:
            # Repeated at the next turn; a store that stays away is reported once a minute, and at the end.
            if time.monotonic() - told > 60.0 and not stopped.is_set():
                told = time.monotonic()
                say(f"{error}; it is tried again")


def lock_folder(stack: contextlib.ExitStack, path: Path, address: Address) -> None:
    """Locks the local folder of an address against other processes of this machine, until `stack` is closed.

    Raises:
      ValueError: another process works in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    lock.touch()
    if not stack.enter_context(locked(lock)):
        raise ValueError(f"{address} is in use by another process of this machine")


class WorkingFolder:
    """A folder of an address that this process owns. A context manager: leaving it publishes and releases it.

    Attributes:
      path: the local folder, which holds the files of the store; absent for an address where nothing is.

    Args:
      store: of the address.
      doing: what this process does there, for the message of another one.
      say: prints a sentence on a problem that does not end the command.
      lost: called from a thread when the address now belongs to another process.

    Raises:
      InUse: another process owns the address. StoreError: the store cannot be read or written.
      ValueError: another process of this machine works in the local folder.
    """

    def __init__(
        self,
        store: Store,
        doing: str,
        *,
        say: Callable[[str], None],
        lost: Callable[[str], None],
        timing: Timing | None = None,
    ):
        self._store, self._say, self._every = store, say, seconds_between_publications()
        self.path = local_place(store.address, WORK)
        self._stack = contextlib.ExitStack()
        try:
            lock_folder(self._stack, self.path, store.address)
            self._lease = Lease(store, doing, timing=timing, lost=lost, wait=say)
            self._stack.callback(self._lease.release)
            published = remove_interrupted(store)
            if not self._is_ahead(published):
                shutil.rmtree(self.path, ignore_errors=True)
                if published is not None:
                    fetch_files(store, self.path, published.files, damaged=say)  # checkpoints say what is damaged
            self._publication = Publication(store, self.path, published, self._lease.check)
            self._record()
        except BaseException:
            self._stack.close()
            raise
        self._one, self._stopped = threading.Lock(), threading.Event()
        often = (self.publish, self._every, self._stopped, say)
        self._thread = threading.Thread(
            target=publish_often, args=often, name=f"publishes {store.address}", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> WorkingFolder:
        return self

    def publish(self) -> None:
        """Publishes the folder as it is now.

        Raises:
          StoreError: the store cannot be written, or the address belongs to another process.
        """
        with self._one:
            if self.path.exists() and self._publication.publish():
                self._record()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._stopped.set()
        self._thread.join()
        try:
            self.publish()
        except StoreError as error:
            place = os.path.relpath(self.path, storage_folder())
            sentence = (
                f"{error}; the folder {place} of the local copies keeps the files, and the same command continues"
            )
            if kind is None:
                raise StoreError(sentence, transient=error.transient) from error
            self._say(sentence)
        else:
            # Everything is in the store; what stays would be removed by the next command in any case.
            shutil.rmtree(self.path, ignore_errors=True)
            self._base.unlink(missing_ok=True)
        finally:
            self._stack.close()

    @property
    def _base(self) -> Path:
        """The file that names the publication after which the local folder was changed."""
        return self.path.with_name(f".{self.path.name}.published")

    def _record(self) -> None:
        new = self._base.with_name(f"{self._base.name}.new")
        new.write_text(str(self._publication.version), encoding="utf-8")
        move_over(new, self._base)

    def _is_ahead(self, published: Manifest | None) -> bool:
        """Whether a process that was killed here left a folder that is newer than the store: nobody published since."""
        version = None if published is None else published.version
        if published is not None and version is None:
            return False  # files without a list, which somebody copied there
        return self.path.is_dir() and self._base.is_file() and read_text(self._base) == str(version)


def working_folder(address: Path | str, doing: str) -> WorkingFolder:
    """The working folder of an address, with sentences on standard error.

    When the address is taken over by another process, this process is interrupted as by Ctrl-C.

    Raises:
      ValueError, StoreError: see `WorkingFolder`.
    """
    return WorkingFolder(open_store(Address.parse(address_text(address))), doing, say=tell, lost=interrupt)


def tell(sentence: str) -> None:
    """Prints a sentence on standard error, with addresses in place of local copies."""
    print(f"starflow: {shown(sentence)}", file=sys.stderr, flush=True)


def interrupt(sentence: str) -> None:
    """Prints why, and interrupts this process as Ctrl-C does."""
    tell(sentence)
    os.kill(os.getpid(), signal.SIGINT)


def publish_new(store: Store, local: Path, timing: Timing | None = None) -> None:
    """Publishes a finished local file, over an older one, or a finished folder where nothing is; removes it locally.

    Raises:
      StoreError: the store cannot be written, or files were written there meanwhile; the local ones then stay.
      InUse: another process owns the folder.
    """
    if not local.is_dir():
        store.send("", local)
        local.unlink()
        return
    lease = Lease(store, "publishes its results", timing=timing)
    try:
        if remove_interrupted(store) is not None:
            place = os.path.relpath(local, storage_folder())
            raise StoreError(
                f"{store.address} must be a new folder, and another command has written files there meanwhile; the "
                f"results are in the folder {place} of the local copies"
            )
        Publication(store, local, None, lease.check).publish()
    finally:
        lease.release()
    shutil.rmtree(local, ignore_errors=True)


def is_taken(store: Store) -> bool:
    """Whether a folder at an address holds files; those that an interrupted publication left do not count."""
    manifest = read_manifest(store)
    if manifest is not None:
        return bool(manifest.files)
    return bool(set(store.list()) - set(OWN) - set(read_pending(store).added))
