"""Copies of solvers with another tolerance, which may be traced."""

from __future__ import annotations

import copy

from jaxtyping import Array, Float

from starflow_jax.solvers.base import Solver
from starflow_jax.solvers.jacobi import Jacobi
from starflow_jax.solvers.per_block import AnySolver, PerBlock
from starflow_jax.solvers.secant import Secant


def with_tolerance(solver: Solver, tolerance: float | Float[Array, ""]) -> Solver:
    """A copy of `solver` with another tolerance; an unchanged copy where it has none.

    Solvers are static arguments, so every tolerance compiles a separate program. Inside a compiled function, and only
    there, the copy may hold a traced number, and one program serves all tolerances. Such a copy is not hashable.
    """
    result = copy.copy(solver)
    if hasattr(solver, "tolerance"):
        object.__setattr__(result, "tolerance", tolerance)
    return result


def bounds_square(solver: Solver) -> bool:
    """Whether the tolerance bounds a mean square, hence the square of an error rather than the error."""
    return isinstance(solver, Jacobi | Secant)


def loosened(solver: AnySolver, factor: float | Float[Array, ""]) -> AnySolver:
    """`solver` with its tolerances scaled so that its error grows by about `factor`; see `with_tolerance`."""
    if isinstance(solver, PerBlock):
        return PerBlock(tuple(loosened(block_solver, factor) for block_solver in solver.solvers))  # type: ignore[misc] # none is PerBlock
    if not hasattr(solver, "tolerance"):
        return solver
    return with_tolerance(solver, solver.tolerance * (factor**2 if bounds_square(solver) else factor))
