"""The estimate of a learned inverse as the answer, without an evaluation of the flow."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from starflow_jax.core.registries import SOLVERS
from starflow_jax.flows.prediction import Predict
from starflow_jax.solvers.base import Kind, Solver, Stage, StageReport, State, finite_until
from starflow_jax.solvers.per_block import AnySolver, PerBlock


@SOLVERS.register("one-pass", flags={})
@dataclasses.dataclass(frozen=True)
class OnePass(Solver):
    """Returns the initial estimates of a learned inverse, which are approximate, as they are.

    The result is not the flow's inverse: its error is that of the network, and no residual measures it. One stage
    covers all tokens and takes no evaluation of the flow.
    """

    @property
    def reads_estimate(self) -> bool:
        """True: the estimate is the answer."""
        return True

    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """See `Solver`."""
        return (Stage(0, count, Kind(0, False)),)

    def padding(self, count: int, start: int, frame: int) -> int:
        """0: nothing is evaluated."""
        return 0

    def advance(
        self, predict: Predict, state: State, first: int | Int[Array, ""], length: int | Int[Array, ""], *, kind: Kind
    ) -> tuple[State, StageReport]:
        """See `Solver`; the state is unchanged, and the residual, which is unknown, is NaN."""
        batch = state.noise.shape[0]
        report = StageReport(
            iterations=jnp.zeros((batch,), jnp.int32),
            evaluations=jnp.int32(0),
            tokens=jnp.int32(0),
            residual=jnp.full((batch,), jnp.nan),
            converged=finite_until(state.tokens, state.num_prefix + first + length),
            residuals=jnp.full((0,), jnp.nan),
        )
        return state, report


def is_approximate(solver: AnySolver) -> bool:
    """Whether the answer of any block is an estimate that nothing verifies."""
    solvers = solver.solvers if isinstance(solver, PerBlock) else (solver,)
    return any(isinstance(block_solver, OnePass) for block_solver in solvers)
