"""Solvers with another tolerance than they were built with, one that may be traced."""

from __future__ import annotations

import copy

import jax

from starflow_jax.solvers.base import Solver
from starflow_jax.solvers.jacobi import Jacobi
from starflow_jax.solvers.per_block import AnySolver, PerBlock
from starflow_jax.solvers.secant import Secant


def with_tolerance(solver: Solver, tolerance: float | jax.Array) -> Solver:
    """A copy of `solver` with another tolerance; without effect where it has none.

    A solver is a static value, so that each tolerance is a program of its own. Inside a compiled function, and only
    there, the copy may hold a traced number: one program then serves all tolerances. Such a copy has no hash.
    """
    found = copy.copy(solver)
    if hasattr(solver, "tolerance"):
        object.__setattr__(found, "tolerance", tolerance)
    return found


def bounds_square(solver: Solver) -> bool:
    """Whether the tolerance bounds a mean square, and hence about the square of an error."""
    return isinstance(solver, Jacobi | Secant)


def loosened(solver: AnySolver, factor: float | jax.Array) -> AnySolver:
    """`solver` with its tolerances changed so that about `factor` times the error is left; see `with_tolerance`."""
    if isinstance(solver, PerBlock):
        return PerBlock(tuple(loosened(own, factor) for own in solver.solvers))  # type: ignore[misc] # none is PerBlock
    if not hasattr(solver, "tolerance"):
        return solver
    return with_tolerance(solver, solver.tolerance * (factor**2 if bounds_square(solver) else factor))
