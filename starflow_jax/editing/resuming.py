"""Chains that are kept in a folder while they run, so that the same request continues them where they were stopped.

`chains.json` holds the request, how far every group of chains is, and the checksums of the other files; it is replaced
as a whole after they are written. `state-GROUP-PARTS.safetensors` holds the chains of a group after so many parts, with
their step sizes and their random key, and each `draws-GROUP-PARTS.safetensors` the draws since the one before it. What
an interruption leaves beside the files that the record names is removed. Files hold arrays and JSON alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError

from starflow_jax.core.atomic_writing import temporary_of
from starflow_jax.core.config.checks import check
from starflow_jax.core.figures import finite, write_json
from starflow_jax.core.regular_files import open_file, parse_json, read_json
from starflow_jax.core.storage.addresses import refuse_address
from starflow_jax.editing.chain_record import RECORD, Group, again, read_groups
from starflow_jax.editing.chains import State, Trace
from starflow_jax.tensor_formats.tensor_folders import read_tensors, write_tensors
from starflow_jax.training.checkpoints.workdir import in_use
from starflow_jax.training.distributed.agreement import everywhere, gather_texts, on_first_process
from starflow_jax.training.loop.signals import StopRequests, stop_requests

# Chains are written after a part, but no more often than this: parts of small models take milliseconds.
SECONDS = 15.0
_DRAWN = ("x", "log_prior", "error", "acceptance")  # of a `Trace`


class ChainsStopped(KeyboardInterrupt):
    """A signal stopped the chains, and they are kept; the same request continues them.

    Attributes:
      stopped_by: the number of the signal.
      moves: that the chains of all groups have made, one group after the other; total: that they make, the burn-in
        included.
    """

    def __init__(self, stopped_by: int, moves: int, total: int):
        super().__init__(f"chains are kept after {moves} of {total} moves")
        self.stopped_by, self.moves, self.total = stopped_by, moves, total


class ChainPlan(NamedTuple):
    """The parts of a group of chains, of so many `moves` each, and how many parts there are.

    The first `burn_in` of `parts` come before the first draw, and the others have `draws` each.
    """

    burn_in: int
    parts: int
    draws: int
    moves: int


class Kept(NamedTuple):
    """What is kept of a group: the chains after so many parts, in arrays of NumPy, and the draws since the burn-in."""

    parts: int
    state: State
    traces: list[Trace]


class ChainFolder:
    """A folder that keeps groups of chains; see `chain_folder`, which opens it.

    Args:
      path: of the folder; request: as the record has it; groups: those of the record.
      count: number of groups of the request.
      stop: signals to stop; seconds: between two writings of one group.
    """

    def __init__(
        self, path: Path, request: dict[str, Any], groups: list[Group], count: int, stop: StopRequests, seconds: float
    ):
        self.path, self.count, self.stop, self.seconds = path, count, stop, seconds
        self._request, self._groups = request, groups

    def chains(self, group: int) -> KeptChains:
        """The chains of a group, counted from 0 in the order in which they run."""
        return KeptChains(self, group)

    def read(self, group: int, like: State, plan: ChainPlan) -> Kept | None:
        """What is kept of a group; None where it has not begun.

        Raises:
          ValueError: a file is missing, damaged or of other chains.
        """
        if group >= len(self._groups):
            return None
        entry, rows = self._groups[group], like.point.x.shape
        record = self.path / RECORD
        check(
            entry.parts <= plan.parts,
            f"{record} is damaged: {entry.parts} parts of {plan.parts}{again(self.path)}",
        )
        paths, structure = jax.tree_util.tree_flatten_with_path(like)
        wanted = {_name(path): (tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in paths}
        found = self._tensors(_file("state", group, entry.parts), entry.state, wanted)
        state = jax.tree.unflatten(structure, [found[name] for name in wanted])
        traces, before = [], plan.burn_in
        for parts, checksum in entry.draws:
            count = (parts - before) * plan.draws
            shapes: dict[str, tuple[int, ...]] = {"x": rows, "acceptance": (rows[0], 2)}
            fields = {name: ((count, *shapes.get(name, rows[:1])), np.dtype(np.float32)) for name in _DRAWN}
            drawn: dict[str, Any] = self._tensors(_file("draws", group, parts), checksum, fields)
            traces.append(Trace(z=None, **drawn))
            before = parts
        check(before == max(entry.parts, plan.burn_in), f"{record} is damaged: draws are missing{again(self.path)}")
        return Kept(entry.parts, state, traces)

    def write(self, group: int, parts: int, state: State, traces: list[Trace]) -> None:
        """Keeps the state of a group after so many parts, and its draws since the last writing.

        Raises:
          ValueError: the folder cannot be written.
        """
        with _writing(self.path):
            self._write(group, parts, state, traces)

    def _write(self, group: int, parts: int, state: State, traces: list[Trace]) -> None:
        old = self._groups[group] if group < len(self._groups) else None
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
        new = self._written(_file("state", group, parts), {_name(path): leaf for path, leaf in leaves})
        draws = () if old is None else old.draws
        if traces:
            together = {name: np.concatenate([getattr(trace, name) for trace in traces]) for name in _DRAWN}
            draws = (*draws, (parts, self._written(_file("draws", group, parts), together)))
        self._groups[group : group + 1] = [Group(parts, new, draws)]
        self.write_record()
        if old is not None and old.parts != parts:
            (self.path / _file("state", group, old.parts)).unlink(missing_ok=True)

    def write_record(self) -> None:
        """Writes what the folder holds."""
        write_json(self.path / RECORD, {"request": self._request, "groups": [one._asdict() for one in self._groups]})

    def remove_others(self) -> None:
        """Removes files of chains that the record does not name, and those that were not written completely."""
        named = {_file("state", group, entry.parts) for group, entry in enumerate(self._groups)}
        named |= {_file("draws", group, parts) for group, entry in enumerate(self._groups) for parts, _ in entry.draws}
        for file in self.path.iterdir():
            target = temporary_of(file.name) or file.name
            own = target == RECORD or re.fullmatch(r"(state|draws)-\d+-\d+\.safetensors", target)
            if own and file.name not in {*named, RECORD}:
                file.unlink(missing_ok=True)

    def _written(self, name: str, tensors: Mapping[str, np.ndarray]) -> str:
        write_tensors(self.path / name, tensors)
        return _checksum(self.path / name)

    def _tensors(
        self, name: str, checksum: str, wanted: Mapping[str, tuple[tuple[int, ...], np.dtype]]
    ) -> dict[str, np.ndarray]:
        """The tensors of a file, of the given shapes and types."""
        path = self.path / name
        try:
            whole = _checksum(path) == checksum
            tensors = read_tensors(path) if whole else {}
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}{again(self.path)}") from error
        check(whole, f"{path} is damaged: its checksum is not that in {RECORD}{again(self.path)}")
        found = {key: (value.shape, value.dtype) for key, value in tensors.items()}
        check(found == dict(wanted), f"{path} is damaged: its arrays are not those of these chains{again(self.path)}")
        return tensors


class KeptChains:
    """One group of chains in a folder: what is kept of it, and what happens after each of its parts."""

    def __init__(self, folder: ChainFolder, group: int):
        self._folder, self._group = folder, group
        self._traces: list[Trace] = []
        self._written = time.monotonic()

    def read(self, like: State, plan: ChainPlan) -> Kept | None:
        """See `ChainFolder.read`. A collective: where one process cannot read them, all raise."""
        kept, problem = None, None
        try:
            kept = self._folder.read(self._group, like, plan)
        except ValueError as error:
            problem = error
        if not everywhere(problem is None):
            raise problem or ValueError(f"checkpoint {self._folder.path} could not be read by another process")
        return kept

    @contextlib.contextmanager
    def beginning(self, plan: ChainPlan) -> Iterator[None]:
        """Marks the computations before the first part, which a signal ends at once, since nothing of them is kept.

        With several processes it has no effect: they stop together after the first part.

        Raises:
          ChainsStopped: a signal came.
        """
        stop = self._folder.stop
        try:
            with stop.interruptible():
                if stop.received and jax.process_count() == 1:
                    raise KeyboardInterrupt
                yield
        except KeyboardInterrupt:
            if not stop.received:
                raise
            raise self._stopped(stop.received, 0, plan) from None

    def advanced(self, parts: int, state: State, trace: Trace | None, plan: ChainPlan) -> None:
        """Writes the chains after a part, where the last writing is long ago, the group is done, or a signal came.

        A collective of all processes, of which the first one writes.

        Args:
          parts: that are done; state: after them, on one device or in all processes alike.
          trace: the draws of the last one, in arrays of NumPy; None in the burn-in.

        Raises:
          ChainsStopped: a signal came; the chains are kept.
          ValueError: the folder cannot be written.
        """
        folder = self._folder
        if trace is not None:
            self._traces.append(trace)
        signal_number = folder.stop.agreed(lambda: jax.block_until_ready(state))
        due = time.monotonic() - self._written >= folder.seconds
        writes = bool(signal_number) or due or parts == plan.parts

        def write() -> None:
            if writes:
                folder.write(self._group, parts, state, self._traces)

        # After every part, since processes have clocks of their own: when a writing is due, the first one decides.
        on_first_process(write, f"checkpoint {folder.path}")
        if writes:
            self._traces, self._written = [], time.monotonic()
        if signal_number:
            raise self._stopped(signal_number, parts, plan)

    def _stopped(self, signal_number: int, parts: int, plan: ChainPlan) -> ChainsStopped:
        made = (self._group * plan.parts + parts) * plan.moves
        return ChainsStopped(signal_number, made, self._folder.count * plan.parts * plan.moves)


@contextlib.contextmanager
def chain_folder(
    path: Path | str, request: Mapping[str, Any], count: int, *, seconds: float | None = None
) -> Iterator[ChainFolder]:
    """Opens the folder in which chains are kept, new or of the same request. A collective of all processes.

    While it is open, Ctrl-C and SIGTERM stop the chains after the running part, and standard error says so at once; a
    second Ctrl-C does not wait. The folder is locked.

    Args:
      path: of the folder, which all processes share; the first one writes.
      request: all that determines the draws, in values of JSON.
      count: number of groups of chains.
      seconds: between two writings of a group; None for `SECONDS`.

    Raises:
      ValueError: the folder holds chains of another request, damaged ones or other files, is in use, or cannot be
        written.
    """
    refuse_address("checkpoint", path)
    path, wanted = Path(path), json.loads(json.dumps(finite(dict(request))))
    with contextlib.ExitStack() as stack:
        content: list[str] = []

        def claim() -> None:
            with _writing(path):
                # A process that was killed in its very first writing leaves an unfinished record.
                new = not path.is_dir() or all(temporary_of(file.name) == RECORD for file in path.iterdir())
                check(
                    new or (path / RECORD).is_file(),
                    f"checkpoint must be a new folder or one of chains, got {path}, which contains other files",
                )
                path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(in_use(path, "checkpoint", "runs chains"))
            content.append(json.dumps(read_json(path / RECORD)) if (path / RECORD).is_file() else "")

        on_first_process(claim, f"checkpoint {path}")
        text = gather_texts(content[0] if content else "")[0]
        groups = read_groups(path, parse_json(text), wanted, count) if text else []
        stop = stack.enter_context(stop_requests(noted=_say_what_follows))
        folder = ChainFolder(path, wanted, groups, count, stop, SECONDS if seconds is None else seconds)

        def begin() -> None:
            with _writing(path):
                folder.write_record()
                folder.remove_others()

        on_first_process(begin, f"checkpoint {path}")
        yield folder


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises ValueError where the folder of chains cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"checkpoint {path} cannot be written: {reason}") from error


def _say_what_follows(signal_number: int) -> None:
    name = signal.Signals(signal_number).name
    with contextlib.suppress(RuntimeError):  # the signal came while standard error was being written
        print(
            f"\nstarflow: {name}: the chains stop after the moves that are running, and are kept; a second Ctrl-C does "
            "not wait",
            file=sys.stderr,
            flush=True,
        )


def _file(kind: str, group: int, parts: int) -> str:
    return f"{kind}-{group:04d}-{parts:06d}.safetensors"


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _checksum(path: Path) -> str:
    file: Any
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
