"""Distinguishes bad input, which is reported in one sentence, from bugs, which keep their traceback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from starflow_jax.core.request_errors import RequestError
from starflow_jax.core.storage.retries import StoreError

BUG = 1
REFUSED = 2
# A part was done: some rows of a sweep failed, or a check of the doctor.
PARTIAL = 3
INTERRUPTED = 130
# The same command may succeed later: a process hung, others did not come in time, or a store did not answer.
TRY_AGAIN = 75


class CommandError(Exception):
    """The input of a command is not valid; the message is one sentence for the user.

    Attributes:
      code: the exit code.
    """

    def __init__(self, message: str, code: int = REFUSED):
        super().__init__(message)
        self.code = code


@contextmanager
def sentences(*checks: Callable[..., Any]) -> Iterator[None]:
    """Turns the documented ValueErrors and OSErrors of functions into CommandErrors.

    Args:
      checks: functions whose errors are about the input. An error that was raised outside of them is a bug and passes
        unchanged. Without any, every error counts.
    """
    try:
        yield
    except RequestError:
        raise  # the command line replaces field names by the names of its options
    except (ValueError, OSError) as error:
        if checks and not _went_through(error.__traceback__, {_code(check) for check in checks}):
            raise
        away = isinstance(error, StoreError) and error.transient
        raise CommandError(sentence(error), TRY_AGAIN if away else REFUSED) from error


def sentence(error: Exception) -> str:
    """The message of an error, on one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()).removesuffix(".")


def _code(check: Callable[..., Any]) -> Any:
    return inspect.unwrap(check).__code__  # decorated functions share the code of their decorator


def _went_through(traceback: TracebackType | None, codes: set[Any]) -> bool:
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False
