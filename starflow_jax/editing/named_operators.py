"""Operators by name, or as a function of the user's own."""

from __future__ import annotations

from starflow_jax.core.function_files import function_of_file
from starflow_jax.editing.operators import GivenOperator
from starflow_jax.evaluation.samples.features.feature_network import named_function


def open_operator(name: str) -> GivenOperator:
    """The linear function of FILE.py:NAME or MODULE:NAME, of data [B, (T,) H, W, C] in [-1, 1].

    The file or the module is the user's own code, and is executed.

    Raises:
      ValueError: there is no such file, module or function.
    """
    if name.rpartition(":")[0].endswith(".py"):
        return GivenOperator(name, function_of_file("operator", name))
    return GivenOperator(name, named_function(name)[0])
