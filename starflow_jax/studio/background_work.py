"""Work on the device, one piece at a time, as generators whose end ends the work."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_PLACES = 2  # one that works, and one that waits for work that was stopped


class Busy(ValueError):
    """There is no place at the device for more work: other work waits for it, or the studio is ending."""


class Ended(Exception):
    """The generator was closed, or the studio has ended, while the work was in progress."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the work is: the sum of the amounts that it has reported."""

    done: int


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome(Generic[T]):
    """The result of the work."""

    value: T


@dataclasses.dataclass(frozen=True, eq=False)
class _Failed:
    error: BaseException


class Device:
    """What one piece of work holds at a time.

    A server lets the next request begin as soon as one is stopped, whose step is still in progress. Whoever begins and
    stops again and again would make a thread wait for every click, so that all but one are refused.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_PLACES)
        self._ended = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the device; raises `Busy` while another piece of work waits for it, or after its end."""
        if not self._places.acquire(blocking=False):
            raise Busy("work that was stopped is still ending; try again in a moment")
        try:
            with self._lock:
                if self.is_ended:  # asked while the lock is held, since the end may come while this work waits for it
                    raise Busy("the studio is ending")
                yield
        finally:
            self._places.release()

    def end(self, seconds: float) -> bool:
        """Ends the work in progress at its next report, and all further work; returns whether it has ended in time.

        A thread that computes while the process exits would abort it.
        """
        self._ended.set()
        in_time = self._lock.acquire(timeout=seconds)
        if in_time:
            self._lock.release()  # to whoever waits, and is refused
        return in_time

    @property
    def is_ended(self) -> bool:
        """Whether there is no work any more."""
        return self._ended.is_set()


def in_turn(device: Device, steps: Generator[T, None, None]) -> Generator[T, None, None]:
    """The values of a generator, each of which is computed while the device is held, and none between them.

    A server may begin with the next request before a step of a stopped one has ended. The device is not held while a
    value is shown, so that a generator that nobody continues keeps nobody waiting.

    Raises:
      Busy: other work waits for the device.
    """
    try:
        while True:
            with device.held():
                value = next(steps, None)
            if value is None:
                return
            yield value
    finally:
        steps.close()


def in_background(
    work: Callable[[Callable[[int], None]], T], device: Device, *, seconds: float = 0.5
) -> Generator[Progress | Outcome[T], None, None]:
    """Runs work in a thread that holds the device, and yields its progress and then its result.

    The work is given a function to call with the amount that it has done since the last call. Once the generator is
    closed, that function raises `Ended`, so that the work ends at its next report. Closing does not wait for that,
    since a server closes generators between its answers; whoever is next waits for the device.

    Args:
      work: the work; device: held by the thread until the work has ended.
      seconds: between two reports at most; the same progress is then yielded again.

    Raises:
      Busy: other work waits for the device.
      Exception: whatever the work raises.
    """
    messages: queue.SimpleQueue[Progress | Outcome[T] | _Failed] = queue.SimpleQueue()
    ended, done = threading.Event(), 0

    def report(amount: int) -> None:
        nonlocal done
        if ended.is_set() or device.is_ended:
            raise Ended
        done += amount
        messages.put(Progress(done))

    def run() -> None:
        try:
            with device.held():
                report(0)
                messages.put(Outcome(work(report)))
        except BaseException as error:  # raised again by the generator
            messages.put(_Failed(error))

    threading.Thread(target=run, daemon=True).start()
    last = Progress(0)
    try:
        while True:
            try:
                message = messages.get(timeout=seconds)
            except queue.Empty:
                message = last
            while isinstance(message, Progress) and not messages.empty():
                message = messages.get()
            if isinstance(message, _Failed):
                raise message.error
            if isinstance(message, Progress):
                last = message
            yield message
            if isinstance(message, Outcome):
                return
    finally:
        ended.set()
