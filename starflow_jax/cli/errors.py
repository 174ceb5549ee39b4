"""A refusal is one sentence; a bug keeps its traceback. What tells them apart stands here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

BUG = 1
REFUSED = 2
INTERRUPTED = 130


class CommandError(Exception):
    """What a person asked for cannot be done; the message is one sentence for them."""


@contextmanager
def sentences(*checks: Callable[..., Any]) -> Iterator[None]:
    """Turns the documented ValueError of a check into a CommandError.

    Args:
      checks: functions whose ValueErrors (and OSErrors) are sentences about what was asked for. An error that
        went through none of them is a bug, and passes unchanged. Without any, every such error counts.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if checks and not _went_through(error.__traceback__, {check.__code__ for check in checks}):
            raise
        raise CommandError(sentence(error)) from error


def sentence(error: Exception) -> str:
    """The message of an error, on one line."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()).removesuffix(".")


def _went_through(traceback: TracebackType | None, codes: set[Any]) -> bool:
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False
