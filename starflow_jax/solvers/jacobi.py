"""Block-wise Jacobi iteration with a video-aware start (specification, section 4, arXiv 2511.20462)."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.core.config.checks import check_integer, check_real
from starflow_jax.core.registries import SOLVERS
from starflow_jax.flows.prediction import Predict
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import Kind, Solver, Stage, StageReport, State, finite_until
from starflow_jax.solvers.fixed_point import Iterate, iterate, relative_change
from starflow_jax.solvers.initial_estimate import Start, check_start, guess


class _Evaluated(NamedTuple):
    """The carry between evaluations without a check of the residual: `sums` of the last one, `inputs` that it read."""

    x: jax.Array
    cache: KVCache
    sums: jax.Array
    inputs: jax.Array


@SOLVERS.register("jacobi", flags={"block": "block", "tolerance": "tolerance", "max_iterations": "max_iterations"})
@dataclasses.dataclass(frozen=True)
class Jacobi(Solver):
    """Iterates whole chunks of tokens until they stop moving.

    The map is triangular, so n iterations solve n tokens exactly; far fewer usually suffice. The tolerance bounds a
    relative *mean-square* change: 1e-3 can leave a relative error near 0.1. A chunk that reaches `max_iterations` is
    reported as not converged. The cache keeps the keys and values of the last inputs.

    Attributes:
      block: chunk length up to and including the end of the first frame; None for `modules` equal chunks.
      growth: factor on the length of the chunks that start later.
      modules: number of chunks that the whole sequence is cut into, where block is None.
      tolerance: stop when mean((x_new - x_old)^2) / mean(x_new^2), over the chunk and the batch, is below this.
      max_iterations: maximum number of iterations per chunk (rounded up to a multiple of `check_every`).
      start: initial estimate of a chunk. "frame" starts chunks after the first frame from the previous frame instead
        of the noise.
      per_sample: measure the residual of each sample separately; a converged sample is not updated any more.
      check_every: iterations between two checks of the residual.
    """

    block: int | None = 64
    growth: int = 4
    modules: int = 1
    tolerance: float = 1e-3
    max_iterations: int = 32
    start: Start = "frame"
    per_sample: bool = False
    check_every: int = 1

    def __post_init__(self) -> None:
        for name in ("growth", "modules", "max_iterations", "check_every"):
            check_integer(f"jacobi.{name}", getattr(self, name), minimum=1)
        if self.block is not None:
            check_integer("jacobi.block", self.block, minimum=1)
        check_real("jacobi.tolerance", self.tolerance, minimum=0.0)
        check_start("jacobi.start", self.start)

    @classmethod
    def paper(cls, **options: Any) -> Jacobi:
        """The schedule of the paper: chunks of 64 in the first frame and of 512 after it (its released code: 256)."""
        return cls(**({"block": 64, "growth": 8} | options))

    @classmethod
    def whole(cls, **options: Any) -> Jacobi:
        """The whole sequence as one chunk, which is suitable for shallow blocks (arXiv 2505.24791)."""
        return cls(**({"block": None} | options))

    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """See `Solver`; a shorter last chunk runs at the length of the longest of its kind, with its tail masked."""
        chunks, first = [], 0
        while first < count:
            later = start + first > frame
            size = -(-count // self.modules) if self.block is None else self.block * (self.growth if later else 1)
            chunks.append((first, min(size, count - first), later))
            first += size
        longest = {later: max(n for _, n, k in chunks if k == later) for _, _, later in chunks}
        return tuple(Stage(first, length, Kind(longest[later], later)) for first, length, later in chunks)

    def guess(self, noise: Float[Array, "B n c"]) -> Float[Array, "B n c"]:
        """See `Solver`."""
        return guess(self.start, noise)

    def advance(
        self, predict: Predict, state: State, first: int | Int[Array, ""], length: int | Int[Array, ""], *, kind: Kind
    ) -> tuple[State, StageReport]:
        """See `Solver`; a stage after the first frame needs at least frame + 1 tokens before it."""
        size = kind.size
        noise = jax.lax.dynamic_slice_in_dim(state.noise, first, size, axis=1)
        position = first + state.num_prefix

        def read(offset: int, count: int = size) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(state.tokens, position - offset, count, axis=1)

        previous = read(1, 1)

        def next_inputs(x: jax.Array, active: jax.Array, inputs: jax.Array) -> jax.Array:
            # A settled sample reads the same input again, so that its keys and values do not change.
            return jnp.where(active[:, None, None], jnp.concatenate([previous, x[:, :-1]], axis=1), inputs)

        def propose(current: Iterate) -> Iterate:
            active = current.active

            def evaluate(x: jax.Array, cache: KVCache, inputs: jax.Array) -> tuple[jax.Array, KVCache, jax.Array]:
                # Far from the solution an estimate may overflow; it must not affect values computed from it.
                prediction, cache = predict(jnp.where(jnp.isfinite(inputs), inputs, 0.0), first, cache)
                ends = jnp.where(active, jnp.asarray(length, jnp.int32), 0)
                x, sums = prediction.update(noise, x, jnp.stack([jnp.zeros_like(ends), ends], axis=1))
                return x, cache, sums

            def again(_: jax.Array, carry: _Evaluated) -> _Evaluated:
                inputs = next_inputs(carry.x, active, carry.inputs)
                x, cache, sums = evaluate(carry.x, carry.cache, inputs)
                return _Evaluated(x, cache, sums, inputs)

            evaluated = _Evaluated(*evaluate(current.x, current.cache, current.memory), current.memory)
            evaluated = jax.lax.fori_loop(1, self.check_every, again, evaluated)
            residual = jnp.where(active, self._residual(evaluated.sums), current.residual)
            unsettled = ~(residual < self.tolerance)  # a NaN residual counts as unsettled
            inputs = next_inputs(evaluated.x, unsettled, evaluated.inputs)
            return Iterate(evaluated.x, evaluated.cache, residual, unsettled, inputs)

        # The first iteration of a chunk after the first frame reads one frame back; entries of that slice at or beyond
        # the chunk's start still hold the noise.
        offset = 1 + state.frame if self.start == "frame" and kind.after_first_frame else 1
        start = Iterate.start(read(0), state.cache, memory=read(offset))
        loop = iterate(propose, start, max_iterations=self.max_iterations, stride=self.check_every)
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, loop.iterate.x, position, axis=1)
        # As many iterations as tokens give the exact solution for any tolerance.
        settled = (loop.iterate.residual < self.tolerance) | (loop.iterations >= length)
        report = loop.report(size, settled & finite_until(tokens, position + length))
        return dataclasses.replace(state, tokens=tokens, cache=loop.iterate.cache), report

    def _residual(self, sums: Float[Array, "B 2"]) -> Float[Array, "B"]:
        """Relative mean-square change [B] of each sample, or of the whole batch, from the sums of `Estimate.update`."""
        change, square = sums.T if self.per_sample else jnp.sum(sums, axis=0)
        return jnp.broadcast_to(relative_change(change, square), sums.shape[:1])
