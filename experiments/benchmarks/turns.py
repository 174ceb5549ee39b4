"""Programs in processes of their own that take turns on the same cores, and the load of everything else."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_SERVER = Path(__file__).with_name("side_process.py")
_STATISTICS = Path("/proc/stat")
# Libraries that read how many threads to start, each when it is loaded; NPROC is XLA's.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")


class SideError(Exception):
    """A side refused a request, or its process ended; the message is one sentence."""


class SideProcess:
    """A side that runs in a process of its own (side_process.py), as a context that ends it."""

    def __init__(
        self, name: str, side: str, threads: int, *, python: str = sys.executable, variables: Mapping[str, str] = {}
    ):
        # The device is the processor, whatever else the machine has.
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {**dict.fromkeys(_THREADS, str(threads)), **variables}
        self.name = name
        try:
            self._process = subprocess.Popen(
                [python, str(_SERVER), side, ",".join(map(str, cores_for(threads)))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
        except OSError as error:
            raise SideError(f"{python} cannot be started: {error}") from error

    def __enter__(self) -> SideProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that an ended process has not read
                    pipe.close()

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
          SideError: the side answered with an error, or its process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended, and so has its output
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SideError(f"{self.name}: the process ended with status {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise SideError(f"{self.name}: {reply['error']}")
        return reply


def cores_for(threads: int) -> list[int]:
    """The first `threads` of the cores that this process may use; none where the system cannot tell."""
    return sorted(os.sched_getaffinity(0))[:threads] if hasattr(os, "sched_getaffinity") else []


def busy_seconds(cores: Sequence[int]) -> float | None:
    """Seconds for which these cores have been busy since the machine started; None where Linux does not tell."""
    try:
        lines = _STATISTICS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    busy = 0
    for name, *values in (line.split() for line in lines):
        if name in {f"cpu{core}" for core in cores}:
            # user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
            ticks = [int(value) for value in values[:8]]
            busy += sum(ticks) - ticks[3] - ticks[4]
    return busy / os.sysconf("SC_CLK_TCK") if cores else None


class Times:
    """What was measured of one program.

    Attributes:
      seconds: wall time of each run. others: cores that other processes used meanwhile, None where it is not known.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._wall = self._others = 0.0
        self._known = True

    def add(self, seconds: float, cpu: float, wall: float, busy: float | None) -> None:
        """One run: its time, processor time of its process, and wall time and busy cores around it."""
        self.seconds.append(seconds)
        self._wall += wall
        self._others += (busy or 0.0) - cpu
        self._known &= busy is not None

    @property
    def others(self) -> float | None:
        """Cores that other processes used, in the mean over all runs, since Linux counts in steps of 10 ms."""
        return max(0.0, self._others) / self._wall if self._known and self._wall else None

    def summary(self) -> dict[str, Any]:
        """Minimum, median, and all times."""
        return {
            "minimum": min(self.seconds),
            "median": statistics.median(self.seconds),
            "seconds": self.seconds,
            "others": self.others,
        }


def take_turns(
    programs: Mapping[str, Sequence[tuple[str, SideProcess, str]]],
    *,
    rounds: int,
    pause: float,
    cores: Sequence[int],
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Times]]:
    """Runs every program once in every round, one process at a time.

    Every second round runs the programs of an operation in reverse order. One more run of each comes first and is not
    counted.

    Args:
      programs: for each operation, the column of the table, the process and the name of its operation there.
      rounds: of which each program is run once.
      pause: seconds before each run, in which threads that still wait for work in other processes go to sleep.
      cores: that the processes run on.
      report: called with the number of rounds done.

    Returns:
      The times by operation and column.

    Raises:
      SideError: a program failed.
    """
    times = {operation: {column: Times() for column, _, _ in columns} for operation, columns in programs.items()}
    for index in range(rounds + 1):
        for operation, columns in programs.items():
            for column, process, name in columns if index % 2 else reversed(columns):
                time.sleep(pause)
                before, start = busy_seconds(cores), time.perf_counter()
                reply = process.ask("time", operation=name)
                wall, after = time.perf_counter() - start, busy_seconds(cores)
                if index:
                    busy = None if before is None or after is None else after - before
                    times[operation][column].add(reply["seconds"], reply["cpu"], wall, busy)
        report(index)
    return times
