"""Operators by name, or as a function of the user's own."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.editing.operators import GivenOperator
from starflow_jax.evaluation.samples.features.feature_network import named_function


def open_operator(name: str) -> GivenOperator:
    """The linear function of FILE.py:NAME or MODULE:NAME, of data [B, (T,) H, W, C] in [-1, 1].

    The file or the module is the user's own code, and is executed.

    Raises:
      ValueError: there is no such file, module or function.
    """
    source, _, function = name.rpartition(":")
    if not source.endswith(".py"):
        return GivenOperator(name, named_function(name)[0])
    check(Path(source).is_file(), f"operator file {source} does not exist")
    try:
        defined: dict[str, Any] = runpy.run_path(source)
    except (Exception, SystemExit) as error:  # the file is arbitrary Python, which may call exit
        raise ValueError(f"operator file {source} failed with {type(error).__name__}: {error}") from error
    found: Callable[..., Any] | None = defined.get(function)
    check(callable(found), f"operator file {source} must define {function}(), and does not")
    assert found is not None
    return GivenOperator(name, found)
