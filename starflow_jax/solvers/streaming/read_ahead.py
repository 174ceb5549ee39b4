"""An iterator that runs ahead of its reader, in a thread of its own, by as many items as the reader allows."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items of an iterator, made in a thread of their own.

    Dispatching a loop may keep the calling thread busy until the device is done with it (a GPU asks its host whether
    to go round again), so that two devices work at once only where two threads feed them.

    Iterate over it once; an error of the iterator is raised where the reader meets it.
    """

    def __init__(self, items: Iterator[T], allowed: int):
        """Starts at once; allowed: items that may be made before the first call of `allow`."""
        self._permits = threading.Semaphore(allowed)
        self._made: queue.SimpleQueue[tuple[str, T | BaseException | None]] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, args=(items,), name="ahead", daemon=True)
        self._thread.start()

    def _work(self, items: Iterator[T]) -> None:
        try:
            while True:
                self._permits.acquire()
                if self._closed:
                    return
                try:
                    item = next(items)
                except StopIteration:
                    self._made.put(("end", None))
                    return
                self._made.put(("item", item))
        except BaseException as error:  # handed on to the reader, who would wait for ever otherwise
            self._made.put(("error", error))

    def __iter__(self) -> Iterator[T]:
        while True:
            what, value = self._made.get()
            if what == "end":
                return
            if what == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]

    def allow(self) -> None:
        """Lets one more item be made."""
        self._permits.release()

    def close(self) -> None:
        """Makes no further item, and waits for the one that is being made."""
        self._closed = True
        self._permits.release()
        self._thread.join()
