"""Something that is opened when it is first used, once in each process that has it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Opened(Generic[T]):
    """What `open()` returns. Other processes are given how to open it, not what is open.

    Args:
      open: picklable.
    """

    def __init__(self, open: Callable[[], T]):
        self._open = open
        self._lock = threading.Lock()
        self._found: list[T] = []

    def __call__(self) -> T:
        """What was opened; raises what opening it raises."""
        with self._lock:
            if not self._found:
                self._found.append(self._open())
            return self._found[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Opened, (self._open,)
