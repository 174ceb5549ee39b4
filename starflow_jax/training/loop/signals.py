"""Stopping on Ctrl-C and SIGTERM (preemption): between updates, and on all processes after the same one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from starflow_jax.training.distributed.agreement import start_maximum

LATE = 1  # exit code of a process that did not stop in time


class StopRequests:
    """The signals received so far.

    The training state is consistent between updates only, so a signal is recorded and the run polls. `interruptible`
    code, which does not touch the state, is interrupted at once.

    Args:
      noted: called in the handler of the first signal that does not interrupt; None for nothing.
    """

    def __init__(self, noted: Callable[[int], None] | None = None):
        self._noted = noted
        self.received = 0  # the number of the signal, 0 for none
        self._interruptible = False
        # With several processes: the result of the reduction started by the previous call.
        self._pending: Callable[[], int] | None = None

    def note(self, signal_number: int) -> None:
        """Records a signal. In interruptible code, and for a second Ctrl-C, it raises KeyboardInterrupt.

        Some systems send SIGTERM twice, so a second one has no further effect. SIGTERM takes precedence over Ctrl-C.
        """
        impatient = signal_number == signal.SIGINT and self.received != 0
        first = self.received == 0
        self.received = max(self.received, int(signal_number))
        if impatient or self._interruptible:
            raise KeyboardInterrupt
        if first and self._noted is not None:
            self._noted(int(signal_number))

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Marks code that may be interrupted at any point; without effect if there are several processes."""
        self._interruptible = jax.process_count() == 1
        try:
            yield
        finally:
            self._interruptible = False

    def agreed(self, wait: Callable[[], Any] = lambda: None) -> int:
        """The signal that ends the run now, 0 for none; every process calls this once per call of the program.

        With several processes all of them stop one call after one received a signal: the reduction is queued on the
        devices, so that no process waits for it.

        Args:
          wait: returns when the devices are idle; used on CPUs, which have no queue (`agreement.start_maximum`).
        """
        if jax.process_count() == 1:
            return self.received
        if jax.default_backend() == "cpu":
            wait()
        signal_number = 0 if self._pending is None else self._pending()
        self._pending = start_maximum(self.received)
        return signal_number


@contextlib.contextmanager
def stop_requests(grace: float | None = None, noted: Callable[[int], None] | None = None) -> Iterator[StopRequests]:
    """Catches SIGINT and SIGTERM inside the `with` block. Outside of the main thread it has no effect.

    Args:
      grace: seconds after SIGTERM within which the `with` block must end, or the process exits with code 1; None for
        no limit.
      noted: see `StopRequests`.
    """
    requests = StopRequests(noted)
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    timers: list[threading.Timer] = []

    def note(signal_number: int, frame: Any) -> None:
        if signal_number == signal.SIGTERM and grace is not None and not timers:
            timers.append(threading.Timer(grace, _give_up, (grace,)))
            timers[0].daemon = True
            timers[0].start()
        requests.note(signal_number)

    before = {signal_number: signal.signal(signal_number, note) for signal_number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for timer in timers:
            timer.cancel()
        for signal_number, handler in before.items():
            # None: a handler not installed from Python, such as that of a cluster's runtime
            signal.signal(signal_number, signal.SIG_DFL if handler is None else handler)


def _give_up(grace: float) -> None:
    """Ends the process from another thread, even while the main thread waits."""
    sys.stderr.write(
        f"starflow: not stopped {grace:g} seconds after SIGTERM; ending without a new checkpoint; the same command "
        "resumes from the last one\n"
    )
    sys.stderr.flush()
    os._exit(LATE)
