"""Jacobi iteration in a sliding window that commits tokens as soon as they have settled."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from starflow_jax.core.config.checks import check_integer, check_real
from starflow_jax.core.registries import SOLVERS
from starflow_jax.flows.prediction import Predict
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import Kind, Solver, Stage, StageReport, State, all_finite, finite_until, frame_stages
from starflow_jax.solvers.fixed_point import Iterate, iterate
from starflow_jax.solvers.initial_estimate import Start, check_start, guess


@SOLVERS.register("sliding", flags={"block": "window", "tolerance": "tolerance"})
@dataclasses.dataclass(frozen=True)
class SlidingJacobi(Solver):
    """Iterates a window of tokens and commits its settled prefix after every iteration.

    Block-wise Jacobi iterates a chunk until its slowest token has settled, although its first tokens settle much
    earlier, and starts the next chunk from the initial guess. Here a token leaves the window as soon as it is final,
    and the later tokens move up with the estimates that they have reached.

    Tokens become final as follows. An iteration computes token j from the values of the tokens before it at the start
    of the iteration. Token 0 of the window depends on committed tokens only, so its new value is exact. If its value
    changed by less than the tolerance, the input of token 1 was correct to the tolerance, and so on: where the first m
    tokens of the window changed by less than the tolerance, m + 1 tokens are final. Every iteration therefore commits
    at least one token, n iterations always suffice, and tolerance 0 gives the sequential result. The cached keys and
    values of a committed token were computed in the same iteration, from inputs correct to the tolerance.

    All samples of a batch share one window, which waits for the slowest sample. A stage is a frame and ends when its
    tokens are committed; the window extends into the next frame, whose estimates are kept.

    Attributes:
      window: tokens that are iterated together.
      tolerance: a token has settled where the root mean square over its channels of the last change is at most this,
        relative to that of the window's values up to and including it.
      start: initial estimate of tokens that enter the window; "frame": the token's value in the previous frame, where
        it has been computed, else its noise.
    """

    window: int = 64
    tolerance: float = 1e-3
    start: Start = "frame"

    def __post_init__(self) -> None:
        check_integer("sliding.window", self.window, minimum=1)
        check_real("sliding.tolerance", self.tolerance, minimum=0.0)
        check_start("sliding.start", self.start)

    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """See `Solver`."""
        return frame_stages(count, start, frame, size=min(self.window, count))

    def guess(self, noise: Float[Array, "B n c"]) -> Float[Array, "B n c"]:
        """See `Solver`."""
        return guess(self.start, noise)

    def begin(
        self,
        z: Float[Array, "B n c"],
        prefix: Float[Array, "B p c"],
        cache: KVCache,
        *,
        padding: int,
        frame: int,
        estimate: Float[Array, "B n c"] | None = None,
    ) -> State:
        """See `Solver`; `State.extra` is the number of tokens committed so far, [] int32."""
        state = super().begin(z, prefix, cache, padding=padding, frame=frame, estimate=estimate)
        # All tokens of the first window enter at once.
        tokens = self._enter(state, state.tokens, -padding, 0, padding)
        return dataclasses.replace(state, tokens=tokens, extra=jnp.int32(0))

    def advance(
        self, predict: Predict, state: State, first: int | Int[Array, ""], length: int | Int[Array, ""], *, kind: Kind
    ) -> tuple[State, StageReport]:
        """See `Solver`; a stage whose tokens are committed already takes no evaluation."""
        size, batch = kind.size, state.noise.shape[0]
        end = jnp.asarray(first + length, jnp.int32)
        bounds = jnp.tile(jnp.asarray([[0, size]], jnp.int32), (batch, 1))

        def unfinished(committed: jax.Array) -> jax.Array:
            return jnp.broadcast_to(committed < end, (batch,))

        def propose(current: Iterate) -> Iterate:
            tokens, committed = current.x, current.memory
            position = state.num_prefix + committed
            inputs = jax.lax.dynamic_slice_in_dim(tokens, position - 1, size, axis=1)
            old = jax.lax.dynamic_slice_in_dim(tokens, position, size, axis=1)
            prediction, cache = predict(inputs, committed, current.cache)
            # All tokens move. The change is measured for each token below; the sums of a sample are not needed.
            noise = jax.lax.dynamic_slice_in_dim(state.noise, committed, size, axis=1)
            new, _ = prediction.update(noise, old, bounds)
            # Far from the solution an estimate may overflow; it must not affect values computed from it. A sample
            # whose exact first token is not finite is lost from here on, and the window does not wait for it.
            lost = ~all_finite(new[:, :1])
            new = jnp.where(lost[:, None, None], jnp.nan, jnp.where(jnp.isfinite(new), new, 0.0))
            change = _relative_change(new, old)
            num_commits = self._num_commits(change, lost, jnp.minimum(size, state.num_tokens - committed))
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
        report = loop.report(size, finite_until(final.x, state.num_prefix + end))
        return dataclasses.replace(state, tokens=final.x, cache=final.cache, extra=final.memory), report

    def _num_commits(
        self, change: Float[Array, "B n"], lost: Bool[Array, "B"], most: int | Int[Array, ""]
    ) -> Int[Array, ""]:
        """The commit rule: the tokens that settled in every sample, up to the first that did not, and one more.

        change: [B, W] of each token; lost: [B] samples that are ignored; most: tokens of the window still unsolved.
        """
        settled = jnp.all((change <= self.tolerance**2) | lost[:, None], axis=0)
        return jnp.minimum(jnp.sum(jnp.cumprod(settled.astype(jnp.int32))) + 1, most)

    def _enter(
        self, state: State, tokens: jax.Array, old: int | Int[Array, ""], new: int | Int[Array, ""], size: int
    ) -> jax.Array:
        """Initialises the tokens that enter as the window moves from token `old` to token `new`."""
        if self.start != "frame":
            return tokens  # initialised by `guess`
        position = state.num_prefix + new
        current = jax.lax.dynamic_slice_in_dim(tokens, position, size, axis=1)
        index = new + jnp.arange(size)
        source = index - state.frame
        # A source that has not been in the window itself still holds its noise; index 0 is the start token.
        usable = (index >= old + size) & (source < old + size) & (state.num_prefix + source >= 1)
        previous = jnp.take(tokens, jnp.maximum(state.num_prefix + source, 0), axis=1)
        updated = jnp.where(usable[:, None], previous, current)
        return jax.lax.dynamic_update_slice_in_dim(tokens, updated, position, axis=1)


def _relative_change(new: Float[Array, "B n c"], old: Float[Array, "B n c"]) -> Float[Array, "B n"]:
    """Mean-square change [B, W] of each token, relative to the mean square of the values up to and including it.

    The change of a token near zero is thus relative to its neighbours, and independent of later tokens.
    """
    change, square = jnp.mean((new - old) ** 2, axis=2), jnp.mean(new**2, axis=2)
    mean_square = jnp.cumsum(square, axis=1) / jnp.arange(1, new.shape[1] + 1)
    return jnp.where(change == 0, 0.0, change / mean_square)
