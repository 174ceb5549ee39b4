"""Quasi-Newton on a few bands of the Jacobian that are fitted to the iteration's own steps: no evaluation is added."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.flows.block import Predict
from starflow_jax.solvers.base import Kind, Solver, Stage, StageReport, State, finite_until
from starflow_jax.solvers.jacobi import Jacobi
from starflow_jax.solvers.start import Start, check_start, guess


@dataclasses.dataclass(frozen=True)
class Secant(Solver):
    """Jacobi iteration that learns, while it runs, how an error travels from token to token, and moves it ahead.

    Jacobi moves the solution x of x = F(x) by the gap F(x) - x, Newton by (I - J)^-1 (F(x) - x) with J = dF/dx,
    strictly lower triangular. A step d that was taken tells J d = F(x + d) - F(x) to first order, at no cost. One
    product says little about a general matrix; it says enough about

        (J d)_i ~= sum over lags l of A_l d_(i-l),

    where the c x c matrices A_l of a sample are shared by `pool` neighbouring tokens: for each channel a least-squares
    fit of lags x c numbers to pool equations an iteration, older ones counting less (`forget`). With the token before
    and the one above as lags, the step (I - J)^-1 gap is a few shifted products (the series of J's powers; J is
    nilpotent, so it ends).

    The step of a token depends on the gaps of its own and of earlier tokens alone. Where all earlier tokens are exact
    it is the gap itself, so an iteration solves one more token exactly whatever the fit says, as Jacobi's does: n
    iterations solve n tokens. Jacobi's own gap decides when to stop.

    An iteration takes one network evaluation, as Jacobi's does; the fit and the series work on tokens of c channels.

    Attributes:
      block, growth, start: as in `Jacobi`; block None is the whole sequence.
      tolerance: stop at mean(gap^2) / mean(F(x)^2) below this, for each sample; a settled sample stops changing.
      max_iterations: most iterations of a chunk.
      lags: distances between a token and those it is taken to depend on: 1 and the tokens of a row, for a picture; of
        a frame, too, for a video.
      pool: tokens that share coefficients; best a few times lags x c of them.
      forget: weight of an iteration's equations in the next one's fit, times itself each iteration; below 1.
      ridge: pulls the coefficients to 0, relative to the mean square of the steps they are fitted to.
      sweeps: terms of the series, hence lags that an error is moved in one iteration.
      limit: most that a channel may be moved beyond the gap.
    """

    block: int | None = None
    growth: int = 1
    tolerance: float = 1e-6
    max_iterations: int = 64
    start: Start = "noise"
    lags: tuple[int, ...] = (1,)
    pool: int = 64
    forget: float = 0.5
    ridge: float = 1e-2
    sweeps: int = 8
    limit: float = 1.0

    def __post_init__(self):
        for name in ("growth", "max_iterations", "pool", "sweeps"):
            check_integer(f"secant.{name}", getattr(self, name), minimum=1)
        if self.block is not None:
            check_integer("secant.block", self.block, minimum=1)
        for name in ("tolerance", "forget", "ridge", "limit"):
            check_real(f"secant.{name}", getattr(self, name), minimum=0.0)
        check(self.forget < 1.0, f"secant.forget must be below 1, got {self.forget}")
        check(self.ridge > 0.0, f"secant.ridge must be above 0, got {self.ridge}")
        check_start("secant.start", self.start)
        for lag in self.lags:
            check_integer("secant.lags", lag, minimum=1)
        check(
            bool(self.lags) and len(set(self.lags)) == len(self.lags),
            f"secant.lags must name at least one distance, none of them twice, got {self.lags}",
        )

    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """See `Solver`."""
        return Jacobi(block=self.block, growth=self.growth).plan(count, start, frame)

    def guess(self, noise: jax.Array) -> jax.Array:
        """See `Solver`."""
        return guess(self.start, noise)

    def advance(
        self, predict: Predict, state: State, first: int | jax.Array, length: int | jax.Array, *, kind: Kind
    ) -> tuple[State, StageReport]:
        """See `Solver`; where the stage starts past the first frame, at least frame + 1 tokens are known."""
        size, (batch, _, c) = kind.size, state.noise.shape
        groups = -(-size // self.pool)
        valid = (jnp.arange(size) < length)[None, :, None]
        whole = jnp.broadcast_to(jnp.stack([jnp.int32(0), jnp.asarray(length, jnp.int32)]), (batch, 2))
        z = jax.lax.dynamic_slice_in_dim(state.noise, first, size, axis=1)
        place = first + state.before
        known = jax.lax.dynamic_slice_in_dim(state.tokens, place - 1, 1, axis=1)

        def unfinished(carry):
            *_, active, _, number, _ = carry
            return jnp.any(active) & (number < self.max_iterations)

        def body(carry):
            x, before, step, normal, cache, residual, active, iterations, number, residuals = carry
            # Far from the solution an estimate may overflow: it must not poison what is computed from it next.
            inputs = jnp.concatenate([known, jnp.where(jnp.isfinite(x), x, 0.0)[:, :-1]], axis=1)
            found, cache = predict(inputs, first, cache)
            new, sums = found.update(z, x, whole)
            image = jnp.where(valid, new, 0.0)
            gap = jnp.where(valid, new - x, 0.0)
            square, total = sums.T
            # Estimates of zero that did not move have settled: 0 / 0 counts as 0.
            residual = jnp.where(active, jnp.where((square == 0) & (total == 0), 0.0, square / total), residual)
            going = ~(residual < self.tolerance)  # written so that NaN goes on
            normal = self._observe(normal, step, image - before, groups)
            correction = self._correction(self._fit(normal), gap)
            # A sample that settles ends on F(x) itself, one Jacobi step better than what was measured. The correction
            # is added to F(x), not the gap to x: x + (F(x) - x) is not F(x) where x is far off.
            moved = jnp.where(going[:, None, None], new + correction, new)
            step = jnp.where(jnp.isfinite(moved - x), moved - x, 0.0)
            x = jnp.where(active[:, None, None] & valid, moved, x)
            residuals = residuals.at[number].set(jnp.max(residual))
            return x, image, step, normal, cache, residual, active & going, iterations + active, number + 1, residuals

        features = c * len(self.lags)
        back = state.frame if self.start == "frame" and kind.past else 0
        begins = jax.lax.dynamic_slice_in_dim(state.tokens, place - back, size, axis=1)
        carry = (
            begins,
            jnp.zeros_like(begins),
            jnp.zeros_like(begins),
            (jnp.zeros((batch, groups, features, features)), jnp.zeros((batch, groups, features, c))),
            state.cache,
            jnp.full((batch,), jnp.inf),
            jnp.ones((batch,), bool),
            jnp.zeros((batch,), jnp.int32),
            jnp.int32(0),
            jnp.full((self.max_iterations,), jnp.nan),
        )
        x, *_, cache, residual, _, iterations, number, residuals = jax.lax.while_loop(unfinished, body, carry)
        old = jax.lax.dynamic_slice_in_dim(state.tokens, place, size, axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, jnp.where(valid, x, old), place, axis=1)
        # As many iterations as tokens are exact whatever the tolerance.
        settled = ((residual < self.tolerance) | (iterations >= length)) & finite_until(tokens, place + length)
        report = StageReport(iterations, number, number * (size * batch), residual, settled, residuals)
        return dataclasses.replace(state, tokens=tokens, cache=cache), report

    def _shifted(self, step: jax.Array) -> jax.Array:
        """The steps of the tokens one lag before each token: [B, n, c] to [B, n, lags x c], 0 before the chunk."""
        count = step.shape[1]
        moved = [jnp.pad(step, ((0, 0), (lag, 0), (0, 0)))[:, :count] for lag in self.lags]
        return jnp.concatenate(moved, axis=-1)

    def _observe(
        self, normal: tuple[jax.Array, jax.Array], step: jax.Array, response: jax.Array, groups: int
    ) -> tuple[jax.Array, jax.Array]:
        """The normal equations of the fit, [B, groups, f, f] and [B, groups, f, c] with f = lags x c, after a step.

        step: [B, n, c], zeros before the first one; response: [B, n, c], by how much F moved.
        """
        batch, count, _ = step.shape
        rest = ((0, 0), (0, groups * self.pool - count), (0, 0))
        causes = jnp.pad(self._shifted(step), rest).reshape(batch, groups, self.pool, -1)
        effect = jnp.pad(response, rest).reshape(batch, groups, self.pool, -1)
        matrix = jnp.einsum("bgki,bgkj->bgij", causes, causes, precision="highest")
        vector = jnp.einsum("bgki,bgkc->bgic", causes, effect, precision="highest")
        return self.forget * normal[0] + matrix, self.forget * normal[1] + vector

    def _fit(self, normal: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Coefficients [B, groups, f, c]; 0 where nothing has been seen, or nothing finite."""
        matrix, vector = normal
        features = matrix.shape[-1]
        scale = jnp.trace(matrix, axis1=-2, axis2=-1)[..., None, None] / features
        usable = jnp.isfinite(scale) & (scale > 0) & jnp.isfinite(vector).all(axis=(-2, -1), keepdims=True)
        scale = jnp.where(usable, scale, 1.0)
        matrix = jnp.where(usable, matrix / scale, 0.0)
        vector = jnp.where(usable, vector / scale, 0.0)
        return jnp.linalg.solve(matrix + self.ridge * jnp.eye(features), vector)

    def _correction(self, coefficients: jax.Array, gap: jax.Array) -> jax.Array:
        """What (I - J)^-1 gap adds to the gap, [B, n, c]; coefficients: [B, groups, f, c]."""
        batch, count, c = gap.shape
        groups = coefficients.shape[1]
        rest = ((0, 0), (0, groups * self.pool - count), (0, 0))

        def sweep(_, correction):
            causes = jnp.pad(self._shifted(gap + correction), rest).reshape(batch, groups, self.pool, -1)
            moved = jnp.einsum("bgki,bgic->bgkc", causes, coefficients)
            return moved.reshape(batch, groups * self.pool, c)[:, :count]

        correction = jax.lax.fori_loop(0, self.sweeps, sweep, jnp.zeros_like(gap))
        return jnp.clip(jnp.where(jnp.isfinite(correction), correction, 0.0), -self.limit, self.limit)
