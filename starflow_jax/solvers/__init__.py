"""Inverting the flow: one algorithm a file, all written against a block's prediction."""

from starflow_jax.solvers.base import Solution, Solver
from starflow_jax.solvers.inverse import BlockReport, Inversion, SlidingWindow, inverse
from starflow_jax.solvers.jacobi import Jacobi
from starflow_jax.solvers.sequential import Sequential

__all__ = [
    "BlockReport",
    "Inversion",
    "Jacobi",
    "Sequential",
    "SlidingWindow",
    "Solution",
    "Solver",
    "inverse",
]
