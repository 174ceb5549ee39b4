"""Ends a training that hangs: the stacks of all threads go to the run's folder, and the process exits.

In a run of several processes every process watches itself. When one hangs, the others wait for it in a collective
operation and hang, too, so that each leaves its stacks and exits; a supervisor or the scheduler then starts all again.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.training.loop.goodput import PHASES
from starflow_jax.training.loop.live_status import LiveStatus

HANGS_FOLDER = "hangs"
HUNG = 75  # exit code of a process that hung; that of `cli.errors.TRY_AGAIN`
SHORTEST = 600.0  # shortest time, in seconds, that counts as a hang by default: a slow store is none
_REPORT_SECONDS = 30.0  # how long saying so may take
_PAUSE = 5.0  # a watchdog that wakes up so many seconds late was paused, with its whole process


class Watchdog:
    """Watches a run from a thread of its own. A context manager.

    Args:
      status: of the run; workdir: its folder.
      after: seconds in one phase of the loop, whatever the phase, that count as a hang; None for `factor`.
      factor: multiple of the median time of an update, beyond twice the time of the updates between two rows of
        metrics, that counts as a hang, at least `SHORTEST` seconds; compilation, saves, samples and evaluations do not
        count. 0 for never.
      process: index of this process.
      interval: seconds between two looks.
      leave: called with `HUNG` when the run hangs.
    """

    def __init__(
        self,
        status: LiveStatus,
        workdir: Path,
        *,
        after: float | None,
        factor: float,
        process: int,
        interval: float = 1.0,
        leave: Callable[[int], object] = os._exit,
    ):
        self._status, self._workdir, self._after, self._factor = status, workdir, after, factor
        self._process, self._interval, self._leave = process, interval, leave
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._after is not None or self._factor:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def limit(self) -> float | None:
        """Seconds without a change of the phase that count as a hang now; None where nothing does."""
        if self._after is not None:
            return self._after
        row = self._status.row_seconds
        if not self._factor or row is None or not self._status.is_busy():
            return None
        # The updates of a row may be queued on the device, so that their time is waited for at once.
        return max(SHORTEST, 2.0 * row + self._factor * row / self._status.row_updates)

    def is_well(self) -> bool:
        """Whether the run makes progress; compilation, saves, samples and evaluations count as progress by default."""
        limit = self.limit()
        return limit is None or self._status.account.since_change <= limit

    def _watch(self) -> None:
        awake = resumed = time.monotonic()
        while not self._stopped.wait(self._interval):
            now = time.monotonic()
            if now - awake > self._interval + _PAUSE:
                resumed = now
            awake = now
            limit, idle = self.limit(), min(self._status.account.since_change, now - resumed)
            if limit is not None and idle > limit:
                try:
                    # In a thread of its own, since the store, the disk or standard error may be what hangs.
                    reporting = threading.Thread(target=self._report, args=(idle, limit), daemon=True)
                    reporting.start()
                    reporting.join(_REPORT_SECONDS)
                finally:
                    self._leave(HUNG)
                return

    def _report(self, idle: float, limit: float) -> None:
        """Says what hangs, and writes the stacks of all threads."""
        status, moment = self._status, time.strftime("%Y%m%d-%H%M%S")
        path = Path(self._workdir) / HANGS_FOLDER / f"{moment}-process-{self._process}.txt"
        phase, who = status.account.phase, f"process {self._process}"
        sentence = (
            f"{who} made no progress for {idle:.0f} s (limit {limit:.0f} s), after step {status.step} in the phase "
            f"{phase!r} ({PHASES[phase]})"
        )
        print(f"starflow: {sentence}; the stacks of its threads go to {path}", file=sys.stderr, flush=True)
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            text = f"{sentence}\n\n{file.read()}"

        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
