"""Addresses of stores and of models on the Hub among the options of a command: copied before it runs.

What it writes to a store is published while it runs and after it.
"""

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
from starflow_jax.cli.options.stored import PublishedOption, StoredOption
from starflow_jax.cli.process_group import is_first
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.copies import (
    fetch_copy,
    fetch_outline,
    fetch_selected,
    local_path,
    one_step,
    without_optimizer,
)
from starflow_jax.core.storage.hub_addresses import is_hub_address
from starflow_jax.core.storage.local_moves import locked
from starflow_jax.core.storage.manifest import LEASE
from starflow_jax.core.storage.places import OUTLINES, WORK, local_place, shown
from starflow_jax.core.storage.store import Store, open_store
from starflow_jax.core.storage.working_folder import is_taken, publish_new, working_folder
from starflow_jax.hub.published_files import is_published


def run_staged(arguments: argparse.Namespace, flag: Callable[[str], str]) -> int:
    """Runs a command with local paths in place of addresses, and publishes what it wrote; returns its exit code.

    Args:
      arguments: the parsed options, which are changed.
      flag: the option that sets a field, for messages.

    Raises:
      CommandError: a store cannot be read or written, or somebody else owns what is written.
    """
    for name, value in vars(arguments).items():
        if any(isinstance(one, PublishedOption) for one in _values(value)):
            runs = [_converted(one.path, arguments) if isinstance(one, PublishedOption) else one
                    for one in _values(value)]  # fmt: skip
            setattr(arguments, name, runs if isinstance(value, list | tuple) else runs[0])
    options = {name: value for name, value in vars(arguments).items() if _addresses(value)}
    # The supervised process opens its addresses itself, and owns its folder; a dry run has none.
    supervises = getattr(arguments, "supervise", None) is not None and not getattr(arguments, "dry_run", False)
    if not options or supervises:
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
    return [one for one in _values(value) if isinstance(one, StoredOption)]


def _values(value: Any) -> list[Any]:
    """The values of an option, which may be given several times."""
    return list(value) if isinstance(value, list | tuple) else [value]


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
    if is_hub_address(value.address):
        return _from_hub(value, arguments, flag, first)
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
    if value.use == "model":
        return _converted(fetch_copy(store, without_optimizer), arguments)
    if value.use == "runs":
        return fetch_copy(store, without_optimizer)
    step = getattr(arguments, "step", None)
    return fetch_selected(store, lambda manifest: one_step(list(manifest.files), step))


def _from_hub(value: StoredOption, arguments: argparse.Namespace, flag: str, first: bool) -> Path:
    """The local path for an address of the Hugging Face Hub, at a commit that is printed.

    Raises:
      CommandError: the command would write there.
    """
    if value.use in ("work", "output"):
        raise CommandError(f"{flag} must be a path or the address of a store, got {value.address}: the Hub is written "
                           "by starflow publish")  # fmt: skip
    if value.use == "read":
        path = local_path(str(value.address))
    else:
        from starflow_jax.hub.model_opening import local_model

        step = getattr(arguments, "step", None)
        model = local_model(str(value.address), step=step, all_steps=value.use == "runs", ema=_reads_average(arguments))
        path = model.path if value.use == "model" else model.run
    if first:
        print(f"{flag} {path}", file=sys.stderr)  # which is shown as the address with its commit
    return path


def _converted(path: Path, arguments: argparse.Namespace) -> Path:
    """The run of a published folder; any other path as it is."""
    if not is_published(path):
        return path
    from starflow_jax.hub.model_opening import local_model

    with sentences():
        return local_model(path, ema=_reads_average(arguments)).path


def _reads_average(arguments: argparse.Namespace) -> bool:
    """Whether the command reads the exponential moving average of the parameters."""
    return not getattr(arguments, "no_ema", False)


def _described(store: Store, value: StoredOption, flag: str) -> Path:
    """The local path for a folder that a command describes, and does not write."""
    if value.use == "work":
        return fetch_outline(store, _is_small)
    _check_new(store, flag)
    place = local_place(value.address, OUTLINES)
    shutil.rmtree(place, ignore_errors=True)
    return place


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
