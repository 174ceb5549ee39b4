"""Block-wise Jacobi iteration with a video-aware start (specification, section 4, arXiv 2511.20462)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from starflow_jax.core.config.checks import check_integer, check_real
from starflow_jax.flows.block import Predict
from starflow_jax.solvers.base import Kind, Solver, Stage, StageReport, State, finite_until
from starflow_jax.solvers.start import Start, check_start, guess


@dataclasses.dataclass(frozen=True)
class Jacobi(Solver):
    """Iterates whole chunks of tokens until they stop moving.

    The map is triangular, so n iterations solve n tokens exactly; far fewer usually do. The tolerance bounds a
    relative *mean-square* change: 1e-3 can leave a relative error near 0.1. A chunk that `max_iterations` ends is
    reported as not converged. The keys and values of the last input iterate stay in the cache.

    Attributes:
      block: chunk length up to and including the end of the first frame; None for `modules` equal chunks.
      growth: chunks that start later are this many times longer.
      modules: where block is None, chunks that the whole sequence is cut into.
      tolerance: stop at mean((x_new - x_old)^2) / mean(x_new^2) below this, over the chunk and the batch.
      max_iterations: most iterations of a chunk (rounded up to a multiple of `check_every`).
      start: first estimate of a chunk. "frame" starts chunks past the first frame from the frame before instead of
        from the noise.
      per_sample: measure the residual of every sample alone; a sample that has settled stops changing.
      check_every: iterations between two looks at the residual.
    """

    block: int | None = 64
    growth: int = 4
    modules: int = 1
    tolerance: float = 1e-3
    max_iterations: int = 32
    start: Start = "frame"
    per_sample: bool = False
    check_every: int = 1

    def __post_init__(self):
        for name in ("growth", "modules", "max_iterations", "check_every"):
            check_integer(f"jacobi.{name}", getattr(self, name), minimum=1)
        if self.block is not None:
            check_integer("jacobi.block", self.block, minimum=1)
        check_real("jacobi.tolerance", self.tolerance, minimum=0.0)
        check_start("jacobi.start", self.start)

    @classmethod
    def paper(cls, **options: Any) -> Jacobi:
        """The schedule of the paper's text: chunks of 64 in the first frame, of 512 after (released code: x4)."""
        return cls(**({"block": 64, "growth": 8} | options))

    @classmethod
    def whole(cls, **options: Any) -> Jacobi:
        """The whole sequence as one chunk, as suits shallow blocks (arXiv 2505.24791)."""
        return cls(**({"block": None} | options))

    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """See `Solver`; a last chunk that is cut short runs at the length of the longest of its kind."""
        found, first = [], 0
        while first < count:
            past = start + first > frame
            size = -(-count // self.modules) if self.block is None else self.block * (self.growth if past else 1)
            found.append((first, min(size, count - first), past))
            first += size
        longest = {past: max(n for _, n, p in found if p == past) for _, _, past in found}
        return tuple(Stage(first, length, Kind(longest[past], past)) for first, length, past in found)

    def guess(self, noise: jax.Array) -> jax.Array:
        """See `Solver`."""
        return guess(self.start, noise)

    def advance(
        self, predict: Predict, state: State, first: int | jax.Array, length: int | jax.Array, *, kind: Kind
    ) -> tuple[State, StageReport]:
        """See `Solver`; where the stage starts past the first frame, at least frame + 1 tokens are known."""
        size, batch = kind.size, state.noise.shape[0]
        z = jax.lax.dynamic_slice_in_dim(state.noise, first, size, axis=1)
        place = first + state.before

        def read(back, count=size):
            return jax.lax.dynamic_slice_in_dim(state.tokens, place - back, count, axis=1)

        known = read(1, 1)

        def next_inputs(x, active, inputs):
            # A settled sample reads the same input again: its keys and values come out as they were.
            return jnp.where(active[:, None, None], jnp.concatenate([known, x[:, :-1]], axis=1), inputs)

        def iterate(x, cache, inputs, active):
            # Far from the solution an estimate may overflow: it must not poison what is computed from it next.
            found, cache = predict(jnp.where(jnp.isfinite(inputs), inputs, 0.0), first, cache)
            ends = jnp.where(active, jnp.asarray(length, jnp.int32), 0)
            x, sums = found.update(z, x, jnp.stack([jnp.zeros_like(ends), ends], axis=1))
            return x, cache, inputs, sums

        def unfinished(carry):
            *_, active, _, number, _ = carry
            return jnp.any(active) & (number < self.max_iterations)

        def body(carry):
            x, cache, inputs, residual, active, iterations, number, residuals = carry

            def again(_, carry):
                x, cache, inputs, _ = carry
                return iterate(x, cache, next_inputs(x, active, inputs), active)

            x, cache, inputs, sums = jax.lax.fori_loop(1, self.check_every, again, iterate(x, cache, inputs, active))
            residual = jnp.where(active, self._residual(sums), residual)
            residuals = residuals.at[number // self.check_every].set(jnp.max(residual))
            iterations = iterations + self.check_every * active
            # Written so that a NaN residual counts as unfinished.
            active = ~(residual < self.tolerance)
            inputs = next_inputs(x, active, inputs)
            return x, cache, inputs, residual, active, iterations, number + self.check_every, residuals

        # The first iteration of a chunk past the first frame reads one frame back; entries of that slice at or beyond
        # the chunk's start still hold the noise.
        back = 1 + state.frame if self.start == "frame" and kind.past else 1
        checks = -(-self.max_iterations // self.check_every)
        carry = (
            read(0),
            state.cache,
            read(back),
            jnp.full((batch,), jnp.inf),
            jnp.ones((batch,), bool),
            jnp.zeros((batch,), jnp.int32),
            jnp.int32(0),
            jnp.full((checks,), jnp.nan),
        )
        x, cache, _, residual, _, iterations, number, residuals = jax.lax.while_loop(unfinished, body, carry)
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, x, place, axis=1)
        # As many iterations as tokens are exact whatever the tolerance.
        settled = ((residual < self.tolerance) | (iterations >= length)) & finite_until(tokens, place + length)
        report = StageReport(iterations, number, number * (size * batch), residual, settled, residuals)
        return dataclasses.replace(state, tokens=tokens, cache=cache), report

    def _residual(self, sums: jax.Array) -> jax.Array:
        """Relative mean-square change [B] of each sample, or of the whole batch, of `Estimate.update`'s sums."""
        change, size = sums.T if self.per_sample else jnp.sum(sums, axis=0)
        # All-zero tokens that did not move have settled: 0 / 0 counts as 0.
        residual = jnp.where((change == 0) & (size == 0), 0.0, change / size)
        return jnp.broadcast_to(residual, sums.shape[:1])
