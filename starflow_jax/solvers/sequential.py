"""The exact inverse, token by token with a key/value cache (specification, section 4)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from starflow_jax.core.registries import SOLVERS
from starflow_jax.flows.prediction import Predict
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import Kind, Solver, Stage, StageReport, State, finite_until, frame_stages


@SOLVERS.register("sequential")
@dataclasses.dataclass(frozen=True)
class Sequential(Solver):
    """One network evaluation per token; exact by construction. A stage is a frame."""

    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """See `Solver`."""
        return frame_stages(count, start, frame, size=1)

    def padding(self, count: int, start: int, frame: int) -> int:
        """0: one slot is written at a time."""
        return 0

    def advance(
        self, predict: Predict, state: State, first: int | Int[Array, ""], length: int | Int[Array, ""], *, kind: Kind
    ) -> tuple[State, StageReport]:
        """See `Solver`."""
        batch = state.noise.shape[0]

        def step(index: jax.Array, carry: tuple[jax.Array, KVCache]) -> tuple[jax.Array, KVCache]:
            tokens, cache = carry
            previous = jax.lax.dynamic_slice_in_dim(tokens, state.num_prefix + index - 1, 1, axis=1)
            affine, cache = predict(previous, index, cache)
            token = affine.inverse(jax.lax.dynamic_slice_in_dim(state.noise, index, 1, axis=1))
            return jax.lax.dynamic_update_slice_in_dim(tokens, token, state.num_prefix + index, axis=1), cache

        length = jnp.asarray(length, jnp.int32)
        tokens, cache = jax.lax.fori_loop(first, first + length, step, (state.tokens, state.cache))
        report = StageReport(
            iterations=jnp.broadcast_to(length, (batch,)),
            evaluations=length,
            tokens=length * batch,
            residual=jnp.zeros((batch,)),
            converged=finite_until(tokens, state.num_prefix + first + length),
            residuals=jnp.full((0,), jnp.nan),
        )
        return dataclasses.replace(state, tokens=tokens, cache=cache), report
