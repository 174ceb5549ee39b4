"""A solver for each block."""

from __future__ import annotations

import dataclasses

from starflow_jax.core.config.checks import check
from starflow_jax.solvers.base import Solver


@dataclasses.dataclass(frozen=True)
class PerBlock:
    """Different solvers for different blocks of a flow.

    Attributes:
      solvers: one per block, block 0 (nearest the data) first; that of an identity block is not used.
    """

    solvers: tuple[Solver, ...]

    def __post_init__(self) -> None:
        check(len(self.solvers) > 0, "solver.solvers must name at least one solver, got none")
        for solver in self.solvers:
            check(isinstance(solver, Solver), f"solver.solvers must contain solvers, got {solver!r}")


AnySolver = Solver | PerBlock


def reads_estimates(solver: AnySolver) -> bool:
    """Whether the solver of any block starts from the estimates of a learned inverse."""
    solvers = solver.solvers if isinstance(solver, PerBlock) else (solver,)
    return any(block_solver.reads_estimate for block_solver in solvers)


def solver_for_block(solver: AnySolver, block: int, num_blocks: int) -> Solver:
    """The solver of one of `num_blocks` blocks; ValueError where a `PerBlock` has another number of solvers."""
    if isinstance(solver, Solver):
        return solver
    check(
        len(solver.solvers) == num_blocks,
        f"solver must name a solver for each of the {num_blocks} blocks, got {len(solver.solvers)}",
    )
    return solver.solvers[block]
