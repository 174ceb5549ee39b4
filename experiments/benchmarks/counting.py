"""Counts the arithmetic of a program from its jaxpr, which timing on a busy machine cannot measure exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def dense_products(function: Callable, *arguments: Any) -> int:
    """Multiply-adds in all dense products of `function`; those inside a scan count once per iteration.

    Products are counted before compilation, including those that a compiler would remove or share.
    """
    return _count_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count_jaxpr(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += turns * sum(map(_count_jaxpr, jaxprs_in_params(equation.params)))
    return total
