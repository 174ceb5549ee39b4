"""The local folders of a run whose hosts share no disk, and their common folder in a store.

Every process trains in a local folder of its own, into which it writes the shards of its own devices. In the background
it publishes its share of each finished checkpoint: the shards whose first replica it holds. The first process owns the
address (`core.storage.lease`), writes everything else, and adds a checkpoint to the list of the files when all others
have published their shares. So a reader sees a checkpoint whole or not at all, and no process waits for another.

At the start all processes agree on the checkpoint to continue from: the newest one that all of their local folders
together contain whole, if nobody has published since, and otherwise the newest one of the store. What a host lacks,
since its disk was lost or is new, it reads from the store, to which the others publish it first. Shards are read when
the checkpoint is restored, and only those of the devices of this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.regular_files import read_text
from starflow_jax.core.storage.copies import fetch_files
from starflow_jax.core.storage.lease import Lease, Timing, machine
from starflow_jax.core.storage.manifest import Manifest, read_manifest
from starflow_jax.core.storage.places import WORK, local_place, storage_folder
from starflow_jax.core.storage.publication import finished_files, remove_interrupted, summed
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.core.storage.store import Store
from starflow_jax.core.storage.working_folder import lock_folder, publish_often, seconds_between_publications
from starflow_jax.training.hosts.agreed_step import from_text, held_steps, newest_complete, to_text
from starflow_jax.training.hosts.array_files import array_of, step_of
from starflow_jax.training.hosts.host_part import (
    COMMON,
    HostPart,
    LeaseOfFirst,
    Share,
    by_step,
    recorded_shares,
    remove_share,
    shared_by,
    write_share,
)
from starflow_jax.training.hosts.listing import Listing

_POLL_SECONDS = 5.0  # between two looks of the first process at what the others have uploaded


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes of a run.

    Attributes:
      index: of this one, 0 for the first; count: of all.
      gather: returns the texts of all processes, in the order of their indices, once all have called it.
    """

    index: int
    count: int
    gather: Callable[[str], list[str]]


class HostFolder:
    """The local folder of one process. A context manager: leaving it publishes and releases it, on all processes.

    Attributes:
      path: the local folder; absent for an address where nothing is.

    Args:
      store: of the address of the run; doing: what the processes do there, for the message of another command.
      group: all processes, which make the same calls.
      say: prints a sentence on a problem that does not end the command.
      lost: called on the first process, from a thread, when the address now belongs to another command.

    Raises:
      InUse: another command owns the address. StoreError: the store cannot be read or written.
      ValueError: another process of this machine works in the local folder.
    """

    def __init__(
        self,
        store: Store,
        doing: str,
        group: Group,
        *,
        say: Callable[[str], None],
        lost: Callable[[str], None],
        timing: Timing | None = None,
    ):
        self._store, self._group, self._say = store, group, say
        self._every = seconds_between_publications()
        self._stack = contextlib.ExitStack()
        # Several processes of one machine may use the same disk.
        places = group.gather(f"{machine()} {storage_folder()}")
        self.path = local_place(store.address, WORK, places[: group.index].count(places[group.index]))
        self._settled: set[int] = set()  # steps that the store has had when the processes started
        try:
            lock_folder(self._stack, self.path, store.address)
            # A single process that works here later must not take this folder for what it left itself.
            self.path.with_name(f".{self.path.name}.published").unlink(missing_ok=True)
            self._begin(doing, lost, timing)
        except BaseException:
            self._stack.close()
            raise
        self._one, self._stopped = threading.Lock(), threading.Event()
        self._due = time.monotonic() + self._every
        often = (self._take_turn, min(self._every, _POLL_SECONDS) if self._first else self._every, self._stopped, say)
        self._thread = threading.Thread(
            target=publish_often, args=often, name=f"publishes {store.address}", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> HostFolder:
        return self

    def record_share(self, step: int, shards: Iterable[str]) -> None:
        """Records, before a checkpoint is written, which of its shards this process publishes."""
        for other in recorded_shares(self.path):
            if not (self.path / f"checkpoints/{other}").is_dir():
                remove_share(self.path, other)
        write_share(self.path, step, Share(tuple(shards), self._first))
        if self._first:
            self._listing.saved_again(step)

    def fetch(self, names: Iterable[str]) -> None:
        """Reads files of the run from the store that are not here yet; leaves out those that the store has not.

        Raises:
          StoreError: the store cannot be read.
        """
        files = self._manifest.files
        missing = {name: files[name] for name in names if name in files and not (self.path / name).is_file()}
        fetch_files(self._store, self.path, missing, damaged=self._say)  # checksums of the checkpoint decide

    def set_aside(self, step: int) -> None:
        """Takes note that a local checkpoint was renamed, so that the step is published when it is saved again.

        Raises:
          StoreError: as `publish`.
        """
        with self._one:
            self._settled.discard(step)
            if self._first:
                self._listing.set_aside(step)
            else:
                self._part.forget(step)

    def publish(self) -> None:
        """Publishes what this process has finished.

        Raises:
          StoreError: the store cannot be written, or the address belongs to another command.
        """
        with self._one:
            self._publish()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._stopped.set()
        self._thread.join()
        try:
            if kind is None:
                self._publish_in_turn(self.publish)
                self._require_newest()
            else:
                self.publish()
        except StoreError as error:
            sentence = f"{error}; the local copies keep the files, and the same command continues"
            if kind is None:
                raise StoreError(sentence, transient=error.transient) from error
            self._say(sentence)
        else:
            if kind is None:
                if self._first:
                    with contextlib.suppress(StoreError):  # the next command removes it
                        self._listing.remove_rest()
                # Everything is in the store; what stays would be removed by the next command in any case.
                shutil.rmtree(self.path, ignore_errors=True)
                self._sessions.unlink(missing_ok=True)
        finally:
            self._stack.close()

    @property
    def _first(self) -> bool:
        return self._group.index == 0

    @property
    def _sessions(self) -> Path:
        """The file that names the sessions after which the local folder was changed."""
        return self.path.with_name(f".{self.path.name}.sessions")

    def _begin(self, doing: str, lost: Callable[[str], None], timing: Timing | None) -> None:
        """Takes the address, agrees with the other processes on a checkpoint, and brings the local folder to it."""
        published, facts = self._taken(doing, lost, timing) if self._first else (None, {})
        facts = json.loads(self._group.gather(json.dumps(facts))[0])
        session, steps = facts["session"], set(facts["steps"])
        self._settled = set(steps)
        if not self._first:
            self._may_write = LeaseOfFirst(self._store, facts["token"]).check
        self._trust(facts["before"], session)
        report = held_steps(self.path, steps)
        found = newest_complete([from_text(text) for text in self._group.gather(to_text(report))])
        agreed = set() if found is None else {found[0]}
        _remove_steps(self.path, keep=steps | agreed)
        if found is not None and found[0] in report:
            write_share(self.path, found[0], shared_by(found[1], self._group.index))
        self._part = HostPart(self._store, self.path, self._group.index, session, self._may_write)
        if self._first:
            self._listing = self._begun(published)
        self._group.gather("the store names this session")
        self._publish_in_turn(lambda: self._publish(agreed))
        manifest = read_manifest(self._store)
        if manifest is None or manifest.session != session:
            raise StoreError(f"{self._store.address} could not be read: another process has written it meanwhile")
        self._bring(manifest)
        self._settled = set(by_step(manifest.files))
        write_text(self._sessions, session)

    def _taken(
        self, doing: str, lost: Callable[[str], None], timing: Timing | None
    ) -> tuple[Manifest | None, dict[str, Any]]:
        """Takes the lease; returns the files of the store, and what the other processes need to know."""
        lease = Lease(self._store, doing, timing=timing, lost=lost, wait=self._say)
        self._stack.callback(lease.release)
        self._may_write = lease.check
        published = remove_interrupted(self._store)
        return published, {
            "session": uuid.uuid4().hex,
            "before": None if published is None else published.session,
            "steps": sorted(by_step(() if published is None else published.files)),
            "token": lease.token,
        }

    def _trust(self, before: str | None, session: str) -> None:
        """Removes the local folder, unless it is of the session that has published last."""
        sessions = read_text(self._sessions).split() if self._sessions.is_file() else []
        if before is not None and before in sessions:
            write_text(self._sessions, f"{before} {session}")  # the store names one or the other from here on
        else:
            shutil.rmtree(self.path, ignore_errors=True)
            self._sessions.unlink(missing_ok=True)

    def _begun(self, published: Manifest | None) -> Listing:
        """The publication of the first process, which has begun the session in the store."""
        if published is not None:
            self._manifest = published
            if published.version is None:  # files without a list, which somebody copied there
                self.fetch(published.files)
                files = {name: summed(file, self.path / name) for name, file in published.files.items()}
                published = Manifest(files)
            self._bring(published)
        listing = Listing(self._store, self.path, published, self._may_write, self._part, self._group.count)
        listing.announce()
        return listing

    def _bring(self, manifest: Manifest) -> None:
        """Reads what the local folder lacks, without the shards of arrays."""
        self._manifest = manifest
        if not self._first:
            for name in COMMON:  # the first process has written them since
                (self.path / name).unlink(missing_ok=True)
        self.fetch(
            name
            for name in manifest.files
            if array_of(name, manifest.files) is None and (self._first or name in COMMON or step_of(name) is not None)
        )

    def _publish(self, agreed: Collection[int] = ()) -> None:
        """Publishes; `agreed` are steps that this process may have no files of."""
        absent = [step for step in agreed if not (self.path / f"checkpoints/{step}").is_dir()]
        self._part.publish(self._settled, absent, self._listed)
        if self._first:
            self._listing.publish()

    def _take_turn(self) -> None:
        """Publishes when it is due; between its turns the first process lists what the others have finished since."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._every
            self.publish()
        elif self._first:
            with self._one:
                self._listing.list_uploaded()

    def _listed(self) -> Collection[int]:
        """The steps that the list of files names."""
        if self._first:
            return self._listing.steps
        manifest = read_manifest(self._store)
        return () if manifest is None else by_step(manifest.files)

    def _require_newest(self) -> None:
        """Raises StoreError, on all processes, unless the store lists the newest checkpoint of all local folders."""
        listed = sorted(self._listing.steps) if self._first else []
        here = max(by_step(finished_files(self.path)), default=-1)
        found = [json.loads(text) for text in self._group.gather(json.dumps([listed, here]))]
        newest = max(here for _, here in found)
        if newest >= 0 and newest not in found[0][0]:
            raise StoreError(
                f"{self._store.address} does not list the newest checkpoint, of step {newest}, since not all processes "
                "have written their parts of it",
                transient=True,
            )

    def _publish_in_turn(self, publish: Callable[[], None]) -> None:
        """Publishes on all processes, on the first one when the others have; raises StoreError on all of them."""
        for turn in (False, True):
            problem = ["", False]
            if self._first is turn:
                try:
                    publish()
                except StoreError as error:
                    problem = [str(error), error.transient]
            for text in self._group.gather(json.dumps(problem)):
                sentence, transient = json.loads(text)
                if sentence:
                    raise StoreError(sentence, transient=transient)


def _remove_steps(folder: Path, keep: Collection[int]) -> None:
    """Removes the local checkpoints of other steps."""
    for path in (folder / "checkpoints").glob("*"):
        if step_of(f"checkpoints/{path.name}/") not in (None, *keep):
            shutil.rmtree(path, ignore_errors=True)
            remove_share(folder, int(path.name))
