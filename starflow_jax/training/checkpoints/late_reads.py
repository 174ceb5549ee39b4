"""Silences what reads of a damaged checkpoint say after its error: they end in other threads, and no one awaits them.

The first error of a read closes its event loop. The reads of other arrays then find the loop closed, and coroutines
that never ran are collected; Python prints a traceback for each, to which only `sys.unraisablehook` has access, or a
warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


@contextlib.contextmanager
def silent_after_an_error() -> Iterator[None]:
    """Within it, and after an error for the rest of the process, errors of late reads of Orbax are not printed.

    All other errors are printed as before.
    """
    before = sys.unraisablehook
    hook = before if isinstance(before, _Hook) else _Hook(before)
    sys.unraisablehook = hook
    try:
        yield  # an error leaves the hook where it is
    except Exception:
        warnings.filterwarnings("ignore", r"coroutine '\w*read\w*' was never awaited", RuntimeWarning)
        raise
    if sys.unraisablehook is hook:
        sys.unraisablehook = before


class _Hook:
    """Calls another hook for all errors but those of late reads."""

    def __init__(self, other: Callable[[Any], Any]) -> None:
        self.other = other

    def __call__(self, unraisable: Any) -> None:
        if not _is_of_a_late_read(unraisable.exc_value, unraisable.object):
            self.other(unraisable)


def _is_of_a_late_read(error: BaseException | None, source: object) -> bool:
    if inspect.iscoroutine(source):
        return Path(source.cr_code.co_filename).is_relative_to(Path(ocp.__file__).parent)
    trace = None if error is None else error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    of_asyncio = trace is not None and Path(trace.tb_frame.f_code.co_filename).parent == Path(asyncio.__file__).parent
    return source is None and of_asyncio and isinstance(error, RuntimeError) and "loop is closed" in str(error)
