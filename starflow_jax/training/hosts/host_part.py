"""The files that one host publishes: which of its local files are its own, and their way to the store."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.regular_files import parse_json, read_text
from starflow_jax.core.storage.lease import BEAT_SECONDS
from starflow_jax.core.storage.manifest import LEASE, File
from starflow_jax.core.storage.parts import Part, write_part
from starflow_jax.core.storage.publication import Seen, finished_files, link_files, send_file
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.core.storage.store import Store
from starflow_jax.training.hosts.array_files import array_of, step_of

_THREADS = 8
_SHARES = ".shares"  # folder with the shares of checkpoints, which is not published itself
# What every process reads at the start of a run, and only the first one writes.
COMMON = ("config.json", "metrics.csv", "goodput.json")


@dataclasses.dataclass(frozen=True)
class Share:
    """The files of a checkpoint that one host publishes.

    Attributes:
      shards: names of files of arrays; others: whether it also publishes all files that are no shards.
    """

    shards: tuple[str, ...]
    others: bool


def write_share(folder: Path, step: int, share: Share) -> None:
    """Records which files of a checkpoint this host publishes, in the local folder of the run."""
    path = folder / _SHARES / f"{step}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(dataclasses.asdict(share)))


def read_share(folder: Path, step: int) -> Share | None:
    """What `write_share` has recorded; None for a step without a record."""
    try:
        values = parse_json(read_text(folder / _SHARES / f"{step}.json"))
        return Share(tuple(values["shards"]), bool(values["others"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def recorded_shares(folder: Path) -> list[int]:
    """The steps with a record."""
    return [int(path.stem) for path in (folder / _SHARES).glob("*.json") if path.stem.isdecimal()]


def remove_share(folder: Path, step: int) -> None:
    """Removes the record of a step."""
    (folder / _SHARES / f"{step}.json").unlink(missing_ok=True)


def shared_by(shares: Sequence[Sequence[str]], process: int) -> Share:
    """The share of a process in a checkpoint that several have left, by the files that each is to publish.

    The first process that has any publishes all files that are no shards.
    """
    first = next((index for index, names in enumerate(shares) if names), 0)
    known = set(itertools.chain(*shares))
    return Share(tuple(name for name in shares[process] if array_of(name, known)), process == first)


def by_step(names: Iterable[str]) -> dict[int, list[str]]:
    """The files of every checkpoint among those of a run."""
    found: dict[int, list[str]] = {}
    for name in names:
        step = step_of(name)
        if step is not None:
            found.setdefault(step, []).append(name)
    return found


def shared_out(folder: Path, step: int, names: Collection[str]) -> list[str] | None:
    """Those of the local files of a checkpoint that this host publishes; None for a step without a share."""
    share = read_share(folder, step)
    if share is None:
        return None
    known, own = set(names), set(share.shards)
    return [name for name in names if (share.others if array_of(name, known) is None else name in own)]


class HostPart:
    """Publishes the files of one process; of the first, only its share of checkpoints. One thread at a time calls it.

    Args:
      store: of the address of the run; folder: the local one; process: index of this process.
      session: of all processes; may_write: raises where this process may no longer write.
    """

    def __init__(self, store: Store, folder: Path, process: int, session: str, may_write: Callable[[], None]):
        self._store, self._folder, self._process, self._may_write = store, folder, process, may_write
        self._part = Part(session)
        self._sent: dict[str, Seen] = {}

    @property
    def part(self) -> Part:
        """What this process has written in this session and may still be listed."""
        return self._part

    def publish(
        self, published: Collection[int], absent: Collection[int], listed: Callable[[], Collection[int]]
    ) -> None:
        """Writes this process's share of finished checkpoints, and other files that only this process has.

        Args:
          published: steps that the store has, of which nothing is written.
          absent: steps of which this process has no files and no share.
          listed: returns the steps that the list of files names now.

        Raises:
          StoreError: the store cannot be written.
        """
        local = finished_files(self._folder)
        shares: dict[int, list[str]] = {step: [] for step in absent}
        for step, names in by_step(local).items():
            share = shared_out(self._folder, step, names)
            if share is not None and step not in published:
                shares[step] = share
        shares = {step: names for step, names in shares.items() if step not in self._part.steps}
        own = [name for name in local if self._process and not name.startswith("checkpoints/") and name not in COMMON]
        changed = [name for name in own if self._sent.get(name) != local[name]]
        if not shares and not changed:
            return
        snapshot = self._folder.with_name(f".{self._folder.name}.snapshot")
        shutil.rmtree(snapshot, ignore_errors=True)
        try:
            # A checkpoint may be removed meanwhile, and its removal may have begun before.
            linked = link_files(self._folder, snapshot, [*changed, *itertools.chain(*shares.values())])
            found, still = by_step(local), by_step(finished_files(self._folder))
            intact = [step for step in shares if found.get(step) == still.get(step)]
            whole = [step for step in intact if all(name in linked for name in shares[step])]
            linked = {name: seen for name, seen in linked.items() if step_of(name) in (None, *whole)}
            with ThreadPoolExecutor(_THREADS) as threads:
                sent = dict(zip(linked, threads.map(lambda name: self._send(name, snapshot), linked), strict=True))
            # A step may be listed after this disk has it no more, until a newer one is listed.
            newest = max(listed(), default=-1)
            kept = [
                step for step in self._part.steps if step > newest or (self._folder / f"checkpoints/{step}").is_dir()
            ]
            files = {name: file for name, file in self._part.files.items() if step_of(name) in (None, *kept)}
            self._write(Part(self._part.session, files | sent, tuple(sorted((*kept, *whole)))))
            self._sent |= {name: linked[name] for name in changed if name in linked}
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)

    def forget(self, step: int) -> None:
        """Takes note that the objects of a step are removed, so that it is written again when it is saved again.

        Raises:
          StoreError: the store cannot be written.
        """
        if step in self._part.steps:
            files = {name: file for name, file in self._part.files.items() if step_of(name) != step}
            steps = tuple(other for other in self._part.steps if other != step)
            self._write(Part(self._part.session, files, steps))

    def _write(self, part: Part) -> None:
        """Takes note of what is written, also in the store unless this is the first process, which writes the list."""
        if self._process:
            self._may_write()
            write_part(self._store, self._process, part)
        self._part = part

    def _send(self, name: str, snapshot: Path) -> File:
        self._may_write()
        return send_file(self._store, name, snapshot / name)


class LeaseOfFirst:
    """The right of the other processes to write, which is that of the first one: its lease.

    Args:
      store: of the address of the run; token: of the lease of the first process.
    """

    def __init__(self, store: Store, token: str, clock: Callable[[], float] = time.monotonic):
        self._store, self._token, self._clock = store, token, clock
        self._seen = -float("inf")

    def check(self) -> None:
        """Raises StoreError unless the lease was still that of the first process within the last ten seconds."""
        now = self._clock()
        if now - self._seen < BEAT_SECONDS:
            return
        try:
            content = parse_json(self._store.read(LEASE, 0, 2**16))
            token = content.get("token") if isinstance(content, dict) else None
        except (FileNotFoundError, ValueError, RecursionError):
            token = None
        if token != self._token:
            raise StoreError(f"{self._store.address} is no longer owned by the first process; nothing more is written")
        self._seen = now
