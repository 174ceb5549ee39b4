"""Jacobi iteration in a window that slides past every token as soon as it is settled (prefix commit)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from starflow_jax.core.config.checks import check_integer, check_real
from starflow_jax.core.registries import SOLVERS
from starflow_jax.flows.block import Predict
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import Kind, Solver, Stage, StageReport, State, all_finite, finite_until, frame_stages
from starflow_jax.solvers.fixed_point import Iterate, iterate
from starflow_jax.solvers.start import Start, check_start, guess


@SOLVERS.register("sliding", flags={"block": "window", "tolerance": "tolerance"})
@dataclasses.dataclass(frozen=True)
class SlidingJacobi(Solver):
    """Iterates a window of tokens and commits its settled prefix after every iteration.

    Block-wise Jacobi waits until the slowest token of a chunk has settled while the chunk's first tokens have been
    final for long, and starts the next chunk cold. Here a token leaves the window as soon as it is final, and the
    tokens behind move up, already part of the way to their solution.

    Which tokens are final: an iteration computes token j from the values that the tokens before it had *entering* the
    iteration. Token 0 of the window reads committed tokens only, so its new value is exact. If its value moved by
    less than the tolerance, token 1 has read an input that was right to the tolerance, and so on: where the first m
    tokens of the window have moved by less, m + 1 tokens are final. Every iteration therefore commits at least one
    token, n iterations always suffice, and tolerance 0 gives the sequential answer. The keys and values that a
    committed token leaves in the cache were computed in that same iteration, from inputs right to the tolerance.

    All samples of a batch share one window: it waits for the slowest sample. A stage is a frame, and ends when its
    tokens are committed; the window reaches into the next frames all the while and keeps what it has found there.

    Attributes:
      window: tokens that are iterated together.
      tolerance: a token has settled where the root mean square over its channels of the last change is at most this,
        relative to that of the window's values up to and including it.
      start: first estimate of tokens that enter the window; "frame": the token's value one frame before, where there
        is one, else its noise.
    """

    window: int = 64
    tolerance: float = 1e-3
    start: Start = "frame"

    def __post_init__(self):
        check_integer("sliding.window", self.window, minimum=1)
        check_real("sliding.tolerance", self.tolerance, minimum=0.0)
        check_start("sliding.start", self.start)

    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """See `Solver`."""
        return frame_stages(count, start, frame, size=min(self.window, count))

    def guess(self, noise: jax.Array) -> jax.Array:
        """See `Solver`."""
        return guess(self.start, noise)

    def begin(self, z: jax.Array, known: jax.Array, cache: KVCache, *, padding: int, frame: int) -> State:
        """See `Solver`; `State.extra` is the number of tokens committed so far, [] int32."""
        state = super().begin(z, known, cache, padding=padding, frame=frame)
        # The first window enters as a whole.
        tokens = self._enter(state, state.tokens, -padding, 0, padding)
        return dataclasses.replace(state, tokens=tokens, extra=jnp.int32(0))

    def advance(
        self, predict: Predict, state: State, first: int | jax.Array, length: int | jax.Array, *, kind: Kind
    ) -> tuple[State, StageReport]:
        """See `Solver`; the stage may have been committed before it starts, and then takes no evaluation."""
        size, batch = kind.size, state.noise.shape[0]
        end = jnp.asarray(first + length, jnp.int32)
        whole = jnp.tile(jnp.asarray([[0, size]], jnp.int32), (batch, 1))

        def unfinished(committed: jax.Array) -> jax.Array:
            return jnp.broadcast_to(committed < end, (batch,))

        def propose(current: Iterate) -> Iterate:
            tokens, committed = current.x, current.memory
            position = state.before + committed
            inputs = jax.lax.dynamic_slice_in_dim(tokens, position - 1, size, axis=1)
            old = jax.lax.dynamic_slice_in_dim(tokens, position, size, axis=1)
            prediction, cache = predict(inputs, committed, current.cache)
            # All tokens move. The change is measured for each token below; the sums of a sample are not needed.
            noise = jax.lax.dynamic_slice_in_dim(state.noise, committed, size, axis=1)
            new, _ = prediction.update(noise, old, whole)
            # Far from the solution an estimate may overflow; it must not spoil what is computed from it. A sample
            # whose exact first token is not finite is lost from here on, and the window does not wait for it.
            lost = ~all_finite(new[:, :1])
            new = jnp.where(lost[:, None, None], jnp.nan, jnp.where(jnp.isfinite(new), new, 0.0))
            change = _relative_change(new, old)
            num_commits = self._num_commits(change, lost, jnp.minimum(size, state.count - committed))
            # The last committed token is exact, whatever its change.
            measured = jnp.where(jnp.arange(size) < num_commits - 1, change, 0.0)
            residual = jnp.maximum(current.residual, jnp.max(measured, axis=1))
            tokens = jax.lax.dynamic_update_slice_in_dim(tokens, new, position, axis=1)
            tokens = self._enter(state, tokens, committed, committed + num_commits, size)
            committed = committed + num_commits
            return Iterate(tokens, cache, residual, unfinished(committed), committed)

        start = Iterate(state.tokens, state.cache, jnp.zeros((batch,)), unfinished(state.extra), state.extra)
        loop = iterate(propose, start)
        final = loop.iterate
        report = loop.report(size, finite_until(final.x, state.before + end))
        return dataclasses.replace(state, tokens=final.x, cache=final.cache, extra=final.memory), report

    def _num_commits(self, change: jax.Array, lost: jax.Array, most: int | jax.Array) -> jax.Array:
        """The commit rule: the tokens that settled in every sample, up to the first that did not, and one more.

        change: [B, W] of each token; lost: [B] samples that are ignored; most: tokens of the window still unsolved.
        """
        settled = jnp.all((change <= self.tolerance**2) | lost[:, None], axis=0)
        return jnp.minimum(jnp.sum(jnp.cumprod(settled.astype(jnp.int32))) + 1, most)

    def _enter(self, state: State, tokens: jax.Array, left: int | jax.Array, begins: int | jax.Array, size: int):
        """Gives a first estimate to the tokens that enter as the window moves from `left` to `begins`."""
        if self.start != "frame":
            return tokens  # `guess` has given it to all of them
        place = state.before + begins
        own = jax.lax.dynamic_slice_in_dim(tokens, place, size, axis=1)
        index = begins + jnp.arange(size)
        earlier = index - state.frame
        # What a frame before has not been in the window either is no better than the noise; 0 is the start token.
        known = (index >= left + size) & (earlier < left + size) & (state.before + earlier >= 1)
        before = jnp.take(tokens, jnp.maximum(state.before + earlier, 0), axis=1)
        return jax.lax.dynamic_update_slice_in_dim(tokens, jnp.where(known[:, None], before, own), place, axis=1)


def _relative_change(new: jax.Array, old: jax.Array) -> jax.Array:
    """Mean-square change [B, W] of each token, relative to the mean square of the values up to and including it.

    A token near zero is thus measured by its neighbours, and never by the tokens behind it, which may be far off.
    """
    change, square = jnp.mean((new - old) ** 2, axis=2), jnp.mean(new**2, axis=2)
    size = jnp.cumsum(square, axis=1) / jnp.arange(1, new.shape[1] + 1)
    return jnp.where(change == 0, 0.0, change / size)
