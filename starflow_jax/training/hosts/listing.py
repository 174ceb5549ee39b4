"""What the first of several processes publishes: its own files, and the list that names those of all processes.

A checkpoint is listed when every process has uploaded its share of it, the first one like any other. Shares are
uploaded from what is on the local disks at that moment, and may be complete when the disks hold newer steps only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from starflow_jax.core.storage.manifest import File, Manifest
from starflow_jax.core.storage.parts import Part, read_part, remove_parts, remove_unlisted
from starflow_jax.core.storage.publication import Publication, Seen, Selection
from starflow_jax.core.storage.store import Store
from starflow_jax.training.hosts.array_files import step_of
from starflow_jax.training.hosts.host_part import HostPart, by_step


class Listing:
    """The publication of the first process. One thread at a time calls it.

    Args:
      store: of the address of the run; folder: the local one of the first process.
      published: what is in the store already; None for a new run.
      may_write: raises where this process may no longer write.
      own: the share of the first process; processes: number of all.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        published: Manifest | None,
        may_write: Callable[[], None],
        own: HostPart,
        processes: int,
    ):
        self._store, self._may_write, self._own, self._processes = store, may_write, own, processes
        self._aside: set[int] = set()  # steps that are not listed until they are saved again
        self._here: set[int] = set()  # steps in the local folder
        self._publication = Publication(
            store, folder, published, may_write, session=own.part.session, processes=processes, select=self._selected
        )

    @property
    def steps(self) -> set[int]:
        """The steps of the checkpoints that the store lists."""
        return set(by_step(self._publication.files))

    def announce(self) -> None:
        """Writes the list of files as it is, so that it names this session; raises StoreError."""
        self._publication.announce()

    def publish(self) -> None:
        """Publishes the files of this process that belong to no checkpoint, and the list of those of all processes.

        Raises:
          StoreError: the store cannot be read or written.
        """
        before = self.steps
        try:
            self._publication.publish()
        finally:
            for step in before - self.steps:  # its objects are removed
                self._own.forget(step)
        if _newest(self.steps) > _newest(before):
            self._remove_older()

    def list_uploaded(self) -> None:
        """Publishes if all processes have uploaded a newer checkpoint since; raises StoreError as `publish`."""
        newest = _newest(self.steps)
        if _newest(self._own.part.steps) > newest and _newest(_common_steps(self._parts(), self._processes)) > newest:
            self.publish()

    def set_aside(self, step: int) -> None:
        """Takes a step from the list, whose objects are removed; raises StoreError as `publish`."""
        self._aside = self._aside | {step}
        self._own.forget(step)
        self.publish()

    def saved_again(self, step: int) -> None:
        """Takes note that all processes write a step anew that may have been set aside; any thread may call this."""
        self._aside = self._aside - {step}

    def remove_rest(self) -> None:
        """Removes all objects that the list does not name, when no process writes any more; raises StoreError."""
        self._may_write()
        remove_parts(self._store, Manifest(self._publication.files, processes=self._processes))

    def _selected(self, local: dict[str, Seen]) -> Selection:
        """What the first process publishes here, and what all processes have written for it."""
        published, parts = self._publication.files, self._parts()
        others: dict[str, File] = {}
        for part in parts:
            others |= {name: file for name, file in part.files.items() if step_of(name) is None}
        chosen = {name: seen for name, seen in local.items() if step_of(name) is None and name not in others}
        settled, self._here = by_step(published), set(by_step(local))
        ready = ({*settled} | _common_steps(parts, self._processes)) - self._aside
        for step in listed_steps(self._here, ready):
            if step in settled:
                others |= {name: published[name] for name in settled[step]}
            else:
                others |= {name: file for part in parts for name, file in part.files.items() if step_of(name) == step}
        return chosen, others

    def _parts(self) -> list[Part]:
        """What all processes have written in this session, of those that have written anything."""
        own = self._own.part
        parts = [read_part(self._store, process) for process in range(1, self._processes)]
        return [own, *(part for part in parts if part is not None and part.session == own.session)]

    def _remove_older(self) -> None:
        """Removes the objects of steps that were uploaded in vain, and are older than all that are still needed."""
        oldest = min(self.steps | self._here)
        for step in self._own.part.steps:
            if step < oldest:
                self._own.forget(step)
        self._may_write()
        remove_unlisted(self._store, self._publication.files, lambda name: _step(name) < oldest)


def listed_steps(here: Collection[int], ready: Collection[int]) -> set[int]:
    """The steps that the list names: the newest that is ready, and as many as the first process holds on its disk.

    A step on its disk that is not ready yet is replaced by the newest others, so that none goes before its successor.

    Args:
      here: steps on the disk; ready: steps that are whole in the store.
    """
    found = {step for step in here if step in ready} | set(sorted(ready)[-1:])
    rest = sorted(set(ready) - found, reverse=True)
    return found | set(rest[: max(len(here) - len(found), 0)])


def _common_steps(parts: Collection[Part], processes: int) -> set[int]:
    """The steps of which every process has uploaded its share."""
    return set.intersection(*(set(part.steps) for part in parts)) if len(parts) == processes else set()


def _newest(steps: Collection[int]) -> int:
    return max(steps, default=-1)


def _step(name: str) -> float:
    step = step_of(name)
    return float("inf") if step is None else step
