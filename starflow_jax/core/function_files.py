"""Functions in files of the user's own."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check


def function_of_file(kind: str, name: str) -> Callable[..., Any]:
    """The function of FILE.py:FUNCTION. The file is the user's own code, and is executed.

    Args:
      kind: what the function is, such as "operator", for the sentences of errors.
      name: FILE.py:FUNCTION.

    Raises:
      ValueError: there is no such file or function, or executing the file fails.
    """
    source, _, function = name.rpartition(":")
    check(source.endswith(".py"), f"{kind} must be FILE.py:FUNCTION, got {name!r}")
    check(Path(source).is_file(), f"{kind} file {source} does not exist")
    try:
        defined = runpy.run_path(source)
    except (Exception, SystemExit) as error:  # the file is arbitrary Python, which may call exit
        raise ValueError(f"{kind} file {source} failed with {type(error).__name__}: {error}") from error
    check(callable(defined.get(function)), f"{kind} file {source} must define {function}(), and does not")
    found: Callable[..., Any] = defined[function]
    return found
