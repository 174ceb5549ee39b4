"""Calls to a store that are repeated a bounded number of times, with growing pauses."""

from __future__ import annotations

import dataclasses
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Conflict(Exception):
    """An object was not written since it exists, or is not of the version that the writer had seen."""


class StoreError(OSError):
    """A call to a store failed; the message is one sentence that names the address.

    Attributes:
      transient: whether the same call may succeed later, since the store did not answer or could not be reached.
    """

    def __init__(self, message: str, *, transient: bool = False):
        super().__init__(message)
        self.transient = transient


# Answers that the same call would get again.
_FINAL = (
    Conflict,
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,  # of a file system of fsspec without this operation
    ImportError,
    TypeError,
    ValueError,
)
_BUSY = (408, 429)  # answers of HTTP that ask for another attempt, among those that refuse a call
# Likewise final, by the names of the classes, whose libraries need not be installed.
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")


@dataclasses.dataclass(frozen=True)
class Retries:
    """How often a call is made at most, and how long the pauses are.

    Attributes:
      attempts: calls in all; first_seconds: the first pause, on average; each further one is twice as long, at most
        `longest_seconds`. Pauses are random, so that many processes do not call at the same moments.
      sleep: waits; tests pass a function that does not.
    """

    attempts: int = 5
    first_seconds: float = 0.25
    longest_seconds: float = 8.0
    sleep: Callable[[float], None] = time.sleep

    def __call__(self, action: Callable[[], T]) -> T:
        """The result of `action`; raises its last error."""
        for attempt in range(self.attempts):
            try:
                return action()
            except _FINAL:
                raise
            except Exception as error:  # libraries of stores raise errors of many kinds when a connection breaks
                if attempt == self.attempts - 1 or type(error).__name__ in _NO_CREDENTIALS:
                    raise
                pause = min(self.first_seconds * 2**attempt, self.longest_seconds)
                self.sleep(pause * random.uniform(0.5, 1.5))
        raise AssertionError("attempts is at least 1")


def store_error(doing: str, error: Exception) -> StoreError:
    """An error as one sentence, without query strings, which may hold signatures, and of bounded length."""
    lines = str(error).strip().splitlines()
    reason = re.sub(r"\?\S+", "?...", lines[0])[:200] if lines else ""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{doing}: there is no such object or bucket")
    final = isinstance(error, _FINAL) or kind in _NO_CREDENTIALS or _is_refused(error)
    return StoreError(f"{doing}: {kind}{f': {reason}' if reason and reason != kind else ''}", transient=not final)


def _is_refused(error: Exception) -> bool:
    """Whether the store has answered that it refuses the call."""
    code = getattr(error, "code", None) or getattr(error, "status", None)  # of gcsfs, and of aiohttp
    return isinstance(code, int) and 400 <= code < 500 and code not in _BUSY
