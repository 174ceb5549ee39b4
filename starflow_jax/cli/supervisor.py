"""Starts a training again after a hang or a crash, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from starflow_jax.cli.errors import INTERRUPTED, REFUSED
from starflow_jax.cli.options.stored import Parsed, PublishedOption, StoredOption
from starflow_jax.core.storage.manifest import read_manifest
from starflow_jax.core.storage.store import open_store

# Exit codes after which starting again cannot help: it has ended, its input is refused, or the user has stopped it.
_FINAL = (0, REFUSED, INTERRUPTED)
_OPTION = "--supervise"
_LONGEST_PAUSE = 60.0
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def supervise(command: Sequence[str], workdir: Parsed | str, attempts: int) -> int:
    """Runs a command that trains in `workdir` until it ends for good; returns its exit code.

    Ctrl-C, SIGTERM and SIGHUP are passed on and end the supervision. A process that a signal has killed, a bug, or a
    hang is started again after a pause that doubles up to a minute.

    Args:
      command: the program and its arguments (`supervised`).
      attempts: how many times it is started again without a new checkpoint in `workdir`.
    """
    received: list[int] = []
    current: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(number)
        for process in current:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        failures = 0
        while True:
            step = newest_step(workdir)
            # It has a process group of its own, because a terminal sends Ctrl-C to every process of its group, and a
            # second one would not wait for a checkpoint.
            process = subprocess.Popen(command, process_group=0)
            current[:] = [process]
            for number in received[:1]:  # it came before there was a process to receive it
                process.send_signal(number)
            code = process.wait()
            current.clear()
            if received or code in _FINAL:
                return _exit_code(code)
            failures = 1 if newest_step(workdir) != step else failures + 1
            reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            if failures > attempts:
                print(f"starflow: ended with {reason} {failures} times without a new checkpoint", file=sys.stderr)
                return _exit_code(code)
            print(
                f"starflow: ended with {reason}; starting again from the last checkpoint", file=sys.stderr, flush=True
            )
            time.sleep(min(2.0 ** (failures - 1), _LONGEST_PAUSE))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(code: int) -> int:
    """The exit code of a shell for that of `Popen`, which is negative for a signal."""
    return code if code >= 0 else 128 - code


def supervised(argv: Sequence[str]) -> list[str]:
    """The command that runs `starflow` with these arguments, without --supervise and its value."""
    kept, skip = [sys.executable, "-m", "starflow_jax"], False
    for text in argv:
        if skip:
            skip = False
        elif text == _OPTION:
            skip = True
        elif not text.startswith(f"{_OPTION}="):
            kept.append(text)
    return kept


def newest_step(workdir: Parsed | str) -> int | None:
    """The newest step with a folder in the run's folder of checkpoints; None without any, or if it cannot be read."""
    assert not isinstance(workdir, PublishedOption)  # it is no folder to work in
    if isinstance(workdir, StoredOption):
        try:
            manifest = read_manifest(open_store(workdir.address))
        except OSError:  # a store that is away
            return None
        names = {name.split("/")[1] for name in (manifest.files if manifest else ()) if name.startswith("checkpoints/")}
    else:
        folder = Path(workdir) / "checkpoints"
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return max((int(name) for name in names if name.isdigit()), default=None)
