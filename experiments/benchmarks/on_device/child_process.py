"""A command in a process of its own, with a time limit: a hang or a crash of it is a result like any other."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Literal

# How long a process may take to end after it was killed; one that waits inside a driver may never end.
_GRACE_S = 10.0
_TAIL_BYTES, _TAIL_LINES, _REASON = 2**16, 30, 200
# The line of a Python traceback that names the exception.
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt|Failure)\b")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      status: "done" (exit status 0), "error" (another exit status, or it could not be started), "crash" (a signal ended
        it), "hang" (it was killed at its limit), or "stuck" (it was killed and did not end).
      seconds: from its start to its end.
      reason: why it is not "done", a clause; "" where it is.
      tail: the last lines that it printed.
    """

    status: Literal["done", "error", "crash", "hang", "stuck"]
    seconds: float
    reason: str = ""
    tail: str = ""


def run_within(command: Sequence[str], limit_s: float, variables: Mapping[str, str] | None = None) -> Ended:
    """Runs a command, and kills it with everything that it started if it takes longer than `limit_s` seconds.

    Args:
      command: the program and its arguments.
      limit_s: seconds.
      variables: of the environment, in addition to those of this process.
    """
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of processes that can be killed together
                env={**os.environ, **(variables or {})},
            )
        except OSError as error:
            return Ended("error", time.monotonic() - start, f"it could not be started: {error.strerror or error}")
        late = stuck = False
        try:
            process.wait(timeout=max(limit_s, 0.0))
        except subprocess.TimeoutExpired:
            late = True
        finally:  # also where this process is told to stop
            stuck = not _end(process)
        seconds, tail = time.monotonic() - start, _tail(output)
    if stuck:
        return Ended("stuck", seconds, f"it ran past {limit_s:.0f} s and did not end when it was killed", tail)
    if late:
        return Ended("hang", seconds, f"it was stopped after {limit_s:.0f} s", tail)
    code = process.returncode
    if code < 0:
        return Ended("crash", seconds, f"signal {-code} ({_signal_name(-code)}) ended it", tail)
    return Ended("done", seconds, "", tail) if code == 0 else Ended("error", seconds, _reason(code, tail), tail)


def _end(process: subprocess.Popen[bytes]) -> bool:
    """Kills the process's group if the process still runs; whether it has ended."""
    # The number of a process that has not been waited for is not given to another one.
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            return False
    return True


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(size - _TAIL_BYTES, 0))
    lines = output.read(_TAIL_BYTES).decode("utf-8", errors="replace").splitlines()
    return "\n".join([line.rstrip() for line in lines if line.strip()][-_TAIL_LINES:])


def _reason(code: int, tail: str) -> str:
    lines = tail.splitlines()
    exceptions = [line for line in lines if _EXCEPTION.match(line)]
    said = (exceptions or lines or [""])[-1].strip()[:_REASON]
    return f"exit status {code}: {said}" if said else f"exit status {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
