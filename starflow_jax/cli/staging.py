"""Addresses of stores among the options of a command: copied before it runs, published while it runs and after it."""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.stored import StoredOption
from starflow_jax.cli.process_group import is_first
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.copies import fetch_copy, fetch_outline, fetch_selected, without_optimizer
from starflow_jax.core.storage.local_moves import locked
from starflow_jax.core.storage.manifest import LEASE
from starflow_jax.core.storage.places import OUTLINES, WORK, local_place, shown
from starflow_jax.core.storage.store import Store, open_store
from starflow_jax.core.storage.working_folder import is_taken, publish_new, working_folder

_STEP = re.compile(r"(?:^|.*/)checkpoints/(0|[1-9]\d*)/")


def run_staged(arguments: argparse.Namespace, flag: Callable[[str], str]) -> int:
    """Runs a command with local paths in place of addresses, and publishes what it wrote; returns its exit code.

    Args:
      arguments: the parsed options, which are changed.
      flag: the option that sets a field, for messages.

    Raises:
      CommandError: a store cannot be read or written, or somebody else owns what is written.
    """
    options = {name: value for name, value in vars(arguments).items() if _addresses(value)}
    # The supervised process opens its addresses itself, and owns its folder.
    if not options or getattr(arguments, "supervise", None) is not None:
        return int(arguments.run(arguments))
    first = getattr(arguments, "process", None) in (None, 0)
    if _is_trained_by_several(arguments, options):
        arguments.begin(arguments)
        first = is_first()
    elif getattr(arguments, "distributed", False):
        for name, value in options.items():
            if any(one.use in ("work", "output") for one in _addresses(value)):
                raise CommandError(
                    f"{flag(name)} must be a folder that all processes share with --distributed, got the address "
                    f"{_addresses(value)[0].address}: mount the bucket as such a folder"
                )
    with contextlib.ExitStack() as stack:
        arguments.staged = []
        arguments.written = [
            one.address for value in options.values() for one in _addresses(value) if one.use in ("work", "output")
        ]
        stack.enter_context(contextlib.redirect_stdout(cast(IO[str], _Shown(sys.stdout))))
        stack.enter_context(contextlib.redirect_stderr(cast(IO[str], _Shown(sys.stderr))))
        outputs: list[tuple[Store, Path]] = []
        with sentences():
            for name, value in options.items():
                setattr(arguments, name, _replaced(value, arguments, flag(name), first, stack, outputs))
        code = int(arguments.run(arguments))
        with sentences():
            for store, local in outputs:
                if first and local.exists():
                    publish_new(store, local)
            stack.close()  # publishes the folders that the command worked in
    return code


def _is_trained_by_several(arguments: argparse.Namespace, options: dict[str, Any]) -> bool:
    """Whether several processes train in a store, each with a local folder of its own."""
    several = getattr(arguments, "distributed", False) or (getattr(arguments, "processes", None) or 1) > 1
    return arguments.command == "train" and several and bool(_addresses(options.get("workdir")))


def _addresses(value: Any) -> list[StoredOption]:
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if isinstance(one, StoredOption)]


def _replaced(
    value: Any,
    arguments: argparse.Namespace,
    flag: str,
    first: bool,
    stack: contextlib.ExitStack,
    outputs: list[tuple[Store, Path]],
) -> Any:
    """The value of an option with a local path for each address."""
    if isinstance(value, list | tuple):
        return [_replaced(one, arguments, flag, first, stack, outputs) for one in value]
    if not isinstance(value, StoredOption):
        return value
    try:
        store = open_store(value.address)
    except ValueError as error:
        raise CommandError(f"{flag} {error}") from error
    if getattr(arguments, "dry_run", False) and flag != "--json" and value.use in ("work", "output"):
        return _described(store, value, flag)
    if value.use == "output" and (outer := _outer(value.address, arguments)) is not None:
        if first:
            _check_new(store, flag)
        return local_place(outer, WORK) / str(value.address).removeprefix(f"{outer}/")  # published with that folder
    if value.use in ("work", "output"):
        local = local_place(value.address, WORK)
        if not getattr(arguments, "others", None):
            arguments.staged.append(local)
    if value.use == "work" and getattr(arguments, "others", None):
        from starflow_jax.training.hosts.joined_folder import host_folder

        arguments.host_folder = stack.enter_context(host_folder(str(value.address), "trains"))
        return arguments.host_folder.path
    if value.use == "work":
        return _working_folder(store, arguments, stack) if first else local
    if value.use == "output":
        if first:
            _prepare_output(store, local, flag)
            outputs.append((store, local))
        return local
    if value.use == "outline":
        place = fetch_outline(store, _is_small, _is_result if arguments.command == "report" else None)
        if store.facts(LEASE) is not None and place.is_dir():
            stack.enter_context(locked(place))  # the folder of a run that somebody owns is in use
        return place
    if value.use == "read":
        return fetch_copy(store)
    if value.use == "runs":
        return fetch_copy(store, without_optimizer)
    step = getattr(arguments, "step", None)
    return fetch_selected(store, lambda manifest: _one_step(list(manifest.files), step))


def _described(store: Store, value: StoredOption, flag: str) -> Path:
    """The local path for a folder that a command describes, and does not write."""
    if value.use == "work":
        return fetch_outline(store, _is_small)
    _check_new(store, flag)
    place = local_place(value.address, OUTLINES)
    shutil.rmtree(place, ignore_errors=True)
    return place


def _one_step(names: list[str], step: int | None) -> list[str]:
    """The files of a run that reading its parameters at one step needs; the newest step for None or a missing one."""
    steps = {int(match[1]) for name in names if (match := _STEP.match(name))}
    chosen = step if step in steps else max(steps, default=None)

    def needed(name: str) -> bool:
        match = _STEP.match(name)
        return match is None or name.startswith("inverse/") or int(match[1]) == chosen

    return [name for name in names if without_optimizer(name) and needed(name)]


def _is_small(name: str) -> bool:
    """Whether a file is read by a description of a run; not those of arrays."""
    return re.search(r"(^|/)checkpoints/[^/]+/(params|ema|opt_state|rest)/", name) is None


def _is_result(name: str) -> bool:
    """Whether a file in the folder of a run, or in a folder directly in it, may hold results of another command."""
    return re.fullmatch(r"(?!checkpoints/|events/)(?:[^/.][^/]*/)?[^/.][^/]*\.jsonl?", name) is not None


def _working_folder(store: Store, arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Path:
    doing = {"train": "trains", "sweep": "sweeps"}.get(arguments.command, f"runs starflow {arguments.command}")
    return stack.enter_context(working_folder(str(store.address), doing)).path


def _outer(address: Address, arguments: argparse.Namespace) -> Address | None:
    """The largest folder among those that the command writes which contains an address."""
    folders = [other for other in arguments.written if str(address).startswith(f"{other}/")]
    return min(folders, key=lambda folder: len(folder.key), default=None)


def _check_new(store: Store, flag: str) -> None:
    """Raises CommandError for a folder that holds files."""
    if is_taken(store):
        raise CommandError(f"{flag} must be a new file or an empty or a new folder, got {store.address}, a folder that "
                           "contains files")  # fmt: skip


def _prepare_output(store: Store, local: Path, flag: str) -> None:
    """Removes what an earlier command left at the local path, and checks that the store can be written.

    Raises:
      CommandError: the address is a folder that holds files, or another process of this machine works there.
    """
    _check_new(store, flag)
    lock = local.with_name(f".{local.name}.lock")  # of a command of this machine that works at this address
    with locked(lock) if lock.is_file() else contextlib.nullcontext(True) as free:
        if not free:
            raise CommandError(f"{flag} {store.address} is in use by another process of this machine")
    if local.is_dir():
        shutil.rmtree(local)
    local.unlink(missing_ok=True)
    local.parent.mkdir(parents=True, exist_ok=True)
    probe = store.parent()
    name = f".starflow-probe-{uuid.uuid4().hex}"
    probe.write(name, b"")
    probe.remove(name)


class _Shown:
    """A stream that prints addresses in place of the local paths that stand for them."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text; returns the number of its characters."""
        self._stream.write(shown(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
