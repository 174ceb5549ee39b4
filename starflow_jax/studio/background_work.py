"""Work on the device, one piece at a time, as generators whose end ends the work."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ended(Exception):
    """The generator was closed while the work was in progress."""


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


def in_turn(device: threading.Lock, steps: Generator[T, None, None]) -> Generator[T, None, None]:
    """The values of a generator, each of which is computed while the device is held, and none between them.

    A server may begin with the next request before a step of a stopped one has ended. The device is not held while a
    value is shown, so that a generator that nobody continues keeps nobody waiting.
    """
    try:
        while True:
            with device:
                value = next(steps, None)
            if value is None:
                return
            yield value
    finally:
        steps.close()


def in_background(
    work: Callable[[Callable[[int], None]], T], device: threading.Lock, *, seconds: float = 0.5
) -> Generator[Progress | Outcome[T], None, None]:
    """Runs work in a thread that holds the device, and yields its progress and then its result.

    The work is given a function to call with the amount that it has done since the last call. Once the generator is
    closed, that function raises `Ended`, so that the work ends at its next report. Closing does not wait for that,
    since a server closes generators between its answers; whoever is next waits for the device.

    Args:
      work: the work; device: held by the thread until the work has ended.
      seconds: between two reports at most; the same progress is then yielded again.

    Raises:
      Whatever the work raises.
    """
    messages: queue.SimpleQueue[Progress | Outcome[T] | _Failed] = queue.SimpleQueue()
    ended, done = threading.Event(), 0

    def report(amount: int) -> None:
        nonlocal done
        if ended.is_set():
            raise Ended
        done += amount
        messages.put(Progress(done))

    def run() -> None:
        try:
            with device:
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
