"""Stopping on request: Ctrl-C and SIGTERM (preemption), seen between updates, by all processes at the same one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from starflow_jax.training.distributed.agreement import ask_largest

LATE = 1  # exit code of a process that could not stop in time


class StopRequests:
    """What has been asked for so far.

    The state of a run is whole between updates only, so a signal is noted and the run asks. In `interruptible`
    code, which leaves the state alone, it interrupts at once.
    """

    def __init__(self):
        self.received = 0  # the number of the signal, 0 for none
        self._interruptible = False
        # In a run of several processes: the answer to the question of the call before.
        self._pending: Callable[[], int] | None = None

    def note(self, number: int) -> None:
        """A signal has come. In interruptible code, and as a second Ctrl-C, it raises KeyboardInterrupt.

        SIGTERM may be sent twice by those who mean it once, and wins over Ctrl-C.
        """
        impatient = number == signal.SIGINT and self.received != 0
        self.received = max(self.received, int(number))
        if impatient or self._interruptible:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Runs what may be given up at any point; not with other processes, which would wait for this one."""
        self._interruptible = jax.process_count() == 1
        try:
            yield
        finally:
            self._interruptible = False

    def agreed(self, wait: Callable[[], Any] = lambda: None) -> int:
        """The signal that ends the run here, 0 for none; every process asks once a call of the program.

        Of several processes all stop where one has to, one call later: asking goes on the devices' queue, so that
        nothing waits for them.

        Args:
          wait: returns when the devices are idle; used where there is no such queue (`agreement.ask_largest`).
        """
        if jax.process_count() == 1:
            return self.received
        if jax.default_backend() == "cpu":
            wait()
        answer = 0 if self._pending is None else self._pending()
        self._pending = ask_largest(self.received)
        return answer


@contextlib.contextmanager
def stop_requests(grace: float | None = None) -> Iterator[StopRequests]:
    """Catches SIGINT and SIGTERM inside. Outside the main thread signals cannot be caught and are left alone.

    Args:
      grace: seconds after SIGTERM in which the `with` block must end, or the process ends with exit code 1; None
        waits for as long as it takes.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    timers: list[threading.Timer] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGTERM and grace is not None and not timers:
            timers.append(threading.Timer(grace, _give_up, (grace,)))
            timers[0].daemon = True
            timers[0].start()
        requests.note(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            # None: a handler that is none of Python's, such as that of a cluster's runtime
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _give_up(grace: float) -> None:
    """Ends the process from another thread, whatever the main one waits for."""
    sys.stderr.write(
        f"starflow: not stopped {grace:g} seconds after SIGTERM; ending without a new checkpoint, "
        "and the same command goes on from the last one\n"
    )
    sys.stderr.flush()
    os._exit(LATE)
