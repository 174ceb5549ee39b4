"""An iterator that runs in a separate thread, ahead of its reader by a limited number of items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """The items of an iterator, computed in a separate thread.

    Dispatching a loop may block the calling thread until the device has finished it (on a GPU the host evaluates the
    loop condition), so that two devices only work concurrently when two threads dispatch to them.

    Iterate over it once; an exception of the iterator is raised in the reader.
    """

    def __init__(self, items: Iterator[T], allowed: int):
        """Starts the thread; allowed: number of items that may be computed before the first call of `allow`."""
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
        except BaseException as error:  # passed to the reader, which would wait forever otherwise
            self._made.put(("error", error))

    def __iter__(self) -> Iterator[T]:
        while True:
            kind, value = self._made.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]

    def allow(self) -> None:
        """Allows one more item."""
        self._permits.release()

    def close(self) -> None:
        """Ends the thread after the current item."""
        self._closed = True
        self._permits.release()
        self._thread.join()
