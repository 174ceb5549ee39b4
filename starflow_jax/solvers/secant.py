"""Quasi-Newton iteration with a banded Jacobian that is fitted to the steps of the iteration itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.registries import SOLVERS
from starflow_jax.flows.prediction import Predict
from starflow_jax.solvers.base import Kind, Solver, Stage, StageReport, State, finite_until
from starflow_jax.solvers.fixed_point import Iterate, iterate, relative_change
from starflow_jax.solvers.initial_estimate import Start, check_start, guess
from starflow_jax.solvers.jacobi import Jacobi
from starflow_jax.solvers.per_block import PerBlock


@flax.struct.dataclass
class NormalEquations:
    """matrix: [B, groups, f, f], vector: [B, groups, f, c] of the least-squares fit, with f = lags x c features."""

    matrix: jax.Array
    vector: jax.Array


@flax.struct.dataclass
class _Observations:
    """The last iteration as the fit uses it: F(x) and the step of x, [B, n, c], and the equations so far."""

    image: jax.Array
    step: jax.Array
    normal: NormalEquations


@dataclasses.dataclass(frozen=True)
class Secant(Solver):
    """Jacobi iteration accelerated by an estimate of how errors propagate from token to token.

    To solve x = F(x), Jacobi iteration adds the gap F(x) - x to x, and Newton's method (I - J)^-1 (F(x) - x) with
    J = dF/dx, strictly lower triangular. A step d of the iteration gives J d = F(x + d) - F(x) to first order without
    a further evaluation. One such product does not determine a general matrix, but it does determine

        (J d)_i ~= sum over lags l of A_l d_(i-l),

    where the c x c matrices A_l of a sample are shared by `pool` neighbouring tokens: for each channel, a least-squares
    fit of lags x c coefficients to pool equations per iteration, with older ones weighted down (`forget`). With the
    previous token and the one above as lags, (I - J)^-1 gap is a few shifted products (the Neumann series, which is
    finite since J is nilpotent).

    The step of a token depends on its own gap and those of earlier tokens alone. Where all earlier tokens are exact
    the step is the gap itself, so that each iteration solves one more token exactly whatever the fit: n iterations
    solve n tokens, as for Jacobi. The stopping rule measures the Jacobi gap.

    An iteration takes one network evaluation, as Jacobi's does; the fit and the series act on tokens of c channels.

    Attributes:
      block, growth, start: as in `Jacobi`; block None is the whole sequence.
      tolerance: a sample has converged when mean(gap^2) / mean(F(x)^2) is below this; it is not updated any more.
      max_iterations: maximum number of iterations per chunk.
      lags: distances to the tokens that a token is taken to depend on: 1 and the tokens of a row for an image, and
        those of a frame for a video.
      pool: number of tokens that share coefficients; a few times lags x c works best.
      forget: factor on older equations in each iteration; below 1.
      ridge: ridge regularisation of the fit, relative to the mean square of the steps.
      sweeps: terms of the series, hence lags that an error propagates over in one iteration.
      limit: largest correction of a channel beyond the gap.
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

    def __post_init__(self) -> None:
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
            f"secant.lags must name at least one distance, each once, got {self.lags}",
        )

    def plan(self, count: int, start: int, frame: int) -> tuple[Stage, ...]:
        """See `Solver`."""
        return Jacobi(block=self.block, growth=self.growth).plan(count, start, frame)

    def guess(self, noise: Float[Array, "B n c"]) -> Float[Array, "B n c"]:
        """See `Solver`."""
        return guess(self.start, noise)

    def advance(
        self, predict: Predict, state: State, first: int | Int[Array, ""], length: int | Int[Array, ""], *, kind: Kind
    ) -> tuple[State, StageReport]:
        """See `Solver`; a stage after the first frame needs at least frame + 1 tokens before it."""
        size, (batch, _, c) = kind.size, state.noise.shape
        groups = -(-size // self.pool)
        valid = (jnp.arange(size) < length)[None, :, None]
        bounds = jnp.broadcast_to(jnp.stack([jnp.int32(0), jnp.asarray(length, jnp.int32)]), (batch, 2))
        noise = jax.lax.dynamic_slice_in_dim(state.noise, first, size, axis=1)
        position = first + state.num_prefix
        previous = jax.lax.dynamic_slice_in_dim(state.tokens, position - 1, 1, axis=1)

        def propose(current: Iterate) -> Iterate:
            x, active, memory = current.x, current.active, current.memory
            # Far from the solution an estimate may overflow; it must not affect values computed from it.
            inputs = jnp.concatenate([previous, jnp.where(jnp.isfinite(x), x, 0.0)[:, :-1]], axis=1)
            prediction, cache = predict(inputs, first, current.cache)
            new, sums = prediction.update(noise, x, bounds)
            image = jnp.where(valid, new, 0.0)
            gap = jnp.where(valid, new - x, 0.0)
            residual = jnp.where(active, relative_change(*sums.T), current.residual)
            unsettled = ~(residual < self.tolerance)  # a NaN residual counts as unsettled
            normal = self._observe(memory.normal, memory.step, image - memory.image, groups)
            correction = self._correction(self._fit(normal), gap)
            # A sample that settles ends on F(x), one Jacobi step better than the measured estimate. The correction
            # is added to F(x), not the gap to x: x + (F(x) - x) is not F(x) where x is far off.
            proposal = jnp.where(unsettled[:, None, None], new + correction, new)
            step = jnp.where(jnp.isfinite(proposal - x), proposal - x, 0.0)
            x = jnp.where(active[:, None, None] & valid, proposal, x)
            return Iterate(x, cache, residual, active & unsettled, _Observations(image, step, normal))

        features = c * len(self.lags)
        offset = state.frame if self.start == "frame" and kind.after_first_frame else 0
        x = jax.lax.dynamic_slice_in_dim(state.tokens, position - offset, size, axis=1)
        equations = NormalEquations(
            jnp.zeros((batch, groups, features, features)), jnp.zeros((batch, groups, features, c))
        )
        memory = _Observations(jnp.zeros_like(x), jnp.zeros_like(x), equations)
        start = Iterate.start(x, state.cache, memory)
        loop = iterate(propose, start, max_iterations=self.max_iterations)
        old = jax.lax.dynamic_slice_in_dim(state.tokens, position, size, axis=1)
        new = jnp.where(valid, loop.iterate.x, old)
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, new, position, axis=1)
        # As many iterations as tokens give the exact solution for any tolerance.
        settled = (loop.iterate.residual < self.tolerance) | (loop.iterations >= length)
        report = loop.report(size, settled & finite_until(tokens, position + length))
        return dataclasses.replace(state, tokens=tokens, cache=loop.iterate.cache), report

    def _shifted(self, step: Float[Array, "B n c"]) -> Float[Array, "B n features"]:
        """The steps of the tokens at each lag before every token: [B, n, c] to [B, n, lags x c], 0 before the chunk."""
        count = step.shape[1]
        shifted = [jnp.pad(step, ((0, 0), (lag, 0), (0, 0)))[:, :count] for lag in self.lags]
        return jnp.concatenate(shifted, axis=-1)

    def _observe(
        self, normal: NormalEquations, step: Float[Array, "B n c"], response: Float[Array, "B n c"], groups: int
    ) -> NormalEquations:
        """The normal equations after a step; step: [B, n, c], 0 at first; response: [B, n, c], the change of F."""
        batch, count, _ = step.shape
        rest = ((0, 0), (0, groups * self.pool - count), (0, 0))
        causes = jnp.pad(self._shifted(step), rest).reshape(batch, groups, self.pool, -1)
        effect = jnp.pad(response, rest).reshape(batch, groups, self.pool, -1)
        matrix = jnp.einsum("bgki,bgkj->bgij", causes, causes, precision="highest")
        vector = jnp.einsum("bgki,bgkc->bgic", causes, effect, precision="highest")
        return NormalEquations(self.forget * normal.matrix + matrix, self.forget * normal.vector + vector)

    def _fit(self, normal: NormalEquations) -> Float[Array, "B groups features c"]:
        """Coefficients [B, groups, f, c]; 0 where no finite step has been observed yet."""
        matrix, vector = normal.matrix, normal.vector
        features = matrix.shape[-1]
        scale = jnp.trace(matrix, axis1=-2, axis2=-1)[..., None, None] / features
        usable = jnp.isfinite(scale) & (scale > 0) & jnp.isfinite(vector).all(axis=(-2, -1), keepdims=True)
        scale = jnp.where(usable, scale, 1.0)
        matrix = jnp.where(usable, matrix / scale, 0.0)
        vector = jnp.where(usable, vector / scale, 0.0)
        coefficients: jax.Array = jnp.linalg.solve(matrix + self.ridge * jnp.eye(features), vector)
        return coefficients

    def _correction(
        self, coefficients: Float[Array, "B groups features c"], gap: Float[Array, "B n c"]
    ) -> Float[Array, "B n c"]:
        """(I - J)^-1 gap - gap, [B, n, c]; coefficients: [B, groups, f, c]."""
        batch, count, c = gap.shape
        groups = coefficients.shape[1]
        rest = ((0, 0), (0, groups * self.pool - count), (0, 0))

        def sweep(_: jax.Array, correction: jax.Array) -> jax.Array:
            causes = jnp.pad(self._shifted(gap + correction), rest).reshape(batch, groups, self.pool, -1)
            moved = jnp.einsum("bgki,bgic->bgkc", causes, coefficients)
            return moved.reshape(batch, groups * self.pool, c)[:, :count]

        correction = jax.lax.fori_loop(0, self.sweeps, sweep, jnp.zeros_like(gap))
        return jnp.clip(jnp.where(jnp.isfinite(correction), correction, 0.0), -self.limit, self.limit)


@SOLVERS.register("secant", flags={"block": "block", "tolerance": "tolerance", "max_iterations": "max_iterations"})
def secant(flow: FlowConfig, **options: Any) -> PerBlock:
    """`Secant` for every block of a flow, with the nearest neighbours of a token in the block as lags.

    Args:
      flow: the configuration of the flow.
      **options: of `Secant`.
    """
    return PerBlock(tuple(Secant(lags=_neighbour_lags(flow, block), **options) for block in range(flow.num_blocks)))


def _neighbour_lags(flow: FlowConfig, block: int) -> tuple[int, ...]:
    """Distances to the token before, to the one above and, where the block spans frames, to that of the last frame."""
    rows, columns = flow.grid
    lags = {1, columns}
    if flow.temporal_causal and not flow.is_local(block):
        lags.add(rows * columns)
    return tuple(sorted(lags))
