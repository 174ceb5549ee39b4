"""A file reader that is opened on first use, once in each process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LazyReader(Generic[T]):
    """Calls `open()` on first use and returns its result from then on. Pickling keeps `open` and not the result.

    Args:
      open: a picklable function.
    """

    def __init__(self, open: Callable[[], T]):
        self._open = open
        self._lock = threading.Lock()
        self._opened: list[T] = []

    def __call__(self) -> T:
        """The result of `open()`; raises what `open()` raises."""
        with self._lock:
            if not self._opened:
                self._opened.append(self._open())
            return self._opened[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyReader, (self._open,)
