"""The loop that all iterative solvers share: evaluate the network, propose a better estimate, stop when it settles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import StageReport


@flax.struct.dataclass
class Iterate:
    """The state that one iteration passes to the next.

    Attributes:
      x: [B, n, c] float32, the estimate.
      cache: keys and values, those of the tokens that the last evaluation read included.
      residual: [B] float32, relative mean-square change of each sample; inf before the first iteration.
      active: [B] bool, samples that are iterated further. An inactive sample must keep its estimate and its residual.
      memory: a pytree of further state that the solver carries from one iteration to the next.
    """

    x: jax.Array
    cache: KVCache
    residual: jax.Array
    active: jax.Array
    memory: Any = None

    @classmethod
    def start(cls, x: Float[Array, "B n c"], cache: KVCache, memory: Any = None) -> Iterate:
        """The iterate before the first iteration: every sample is active."""
        batch = x.shape[0]
        return cls(x, cache, jnp.full((batch,), jnp.inf), jnp.ones((batch,), bool), memory)


# An iteration of a solver: from the current iterate to the next one.
Propose = Callable[[Iterate], Iterate]


@flax.struct.dataclass
class Loop:
    """The state of the loop.

    Attributes:
      iterate: the current iterate.
      iterations: [B] int32, iterations in which a sample was active.
      evaluations: [] int32, network evaluations so far.
      residuals: [checks] float32, the residual of the worst sample at every check, NaN where none was made.
    """

    iterate: Iterate
    iterations: jax.Array
    evaluations: jax.Array
    residuals: jax.Array

    def report(self, window: int, converged: Bool[Array, "B"]) -> StageReport:
        """The report of a stage whose evaluations each work on `window` tokens of every sample; converged: [B]."""
        return StageReport(
            iterations=self.iterations,
            evaluations=self.evaluations,
            tokens=self.evaluations * (window * self.iterations.shape[0]),
            residual=self.iterate.residual,
            converged=converged,
            residuals=self.residuals,
        )


def iterate(propose: Propose, start: Iterate, *, max_iterations: int | None = None, stride: int = 1) -> Loop:
    """Applies `propose` until no sample is active.

    Args:
      propose: `stride` network evaluations, which give the next iterate.
      start: the first iterate.
      max_iterations: stop after this many evaluations, rounded up to a multiple of `stride`. None sets no limit, and
        records no residuals, whose number has to be known beforehand.
      stride: evaluations of one call of `propose`.
    """
    batch = start.active.shape[0]
    checks = 0 if max_iterations is None else -(-max_iterations // stride)

    def unfinished(loop: Loop) -> jax.Array:
        active = jnp.any(loop.iterate.active)
        return active if max_iterations is None else active & (loop.evaluations < max_iterations)

    def body(loop: Loop) -> Loop:
        proposal, residuals = propose(loop.iterate), loop.residuals
        if checks:
            residuals = residuals.at[loop.evaluations // stride].set(jnp.max(proposal.residual))
        iterations = loop.iterations + stride * loop.iterate.active
        return Loop(proposal, iterations, loop.evaluations + stride, residuals)

    loop = Loop(start, jnp.zeros((batch,), jnp.int32), jnp.int32(0), jnp.full((checks,), jnp.nan))
    return jax.lax.while_loop(unfinished, body, loop)


def relative_change(change: Float[Array, "*B"], square: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """`change` / `square`, of any one shape; 0 where both are 0, since constant zeros have converged."""
    return jnp.where((change == 0) & (square == 0), 0.0, change / square)
