"""The inverse of the flow, noise to data, block by block, with guidance, given frames and sliding windows.

Specification, sections 3 to 5.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from starflow_jax.core.config.checks import check
from starflow_jax.flows.conditions import check_guidance, condition_or_default
from starflow_jax.flows.flow import Flow, check_lengths, without_padding
from starflow_jax.flows.guidance import AnyGuidance
from starflow_jax.flows.learned_inverse import LearnedInverse
from starflow_jax.flows.noise_level import NoiseLevel, resolved_level
from starflow_jax.flows.order import AnyArray, Grid
from starflow_jax.flows.pixel_map import map_pixels
from starflow_jax.nn.ready_parameters import ready_for_inference
from starflow_jax.solvers.base import Report, Solver
from starflow_jax.solvers.inverse_arguments import (
    SlidingWindow,
    check_estimates,
    check_frames,
    check_later,
    check_logdet,
)
from starflow_jax.solvers.log_scales import data_half, log_scale_half, widened
from starflow_jax.solvers.per_block import AnySolver, solver_for_block
from starflow_jax.solvers.sequential import Sequential
from starflow_jax.solvers.span import Span


@flax.struct.dataclass
class BlockReport(Report):
    """The report of one block, for B samples (B videos where the block runs inside frames)."""

    block: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Inversion:
    """The result of `inverse`.

    Attributes:
      x: data in the layout of z, float32.
      states: arrays in the layout of z: z itself, then the state after each inverted block; the last
        one is x, before the inverse of the pixel map where the flow has one.
      reports: one per block, in the order of inversion (deep block first; identity blocks have none).
      clean: the learned inverse's estimate of the data without the training noise, in the layout of z; None without it.
      logdet: log |dz/dx| at x, [B] float32, of the map from x to the noise that the last block's inverse reads; None
        unless it was requested.
    """

    x: jax.Array
    states: tuple[jax.Array, ...]
    reports: tuple[BlockReport, ...]
    clean: jax.Array | None = None
    logdet: jax.Array | None = None

    @property
    def evaluations(self) -> Int[Array, ""]:
        """Depth: sequential network evaluations of all blocks, [] int32."""
        return sum((jnp.sum(r.evaluations) for r in self.reports), jnp.int32(0))

    @property
    def tokens(self) -> Int[Array, ""]:
        """Tokens that the networks of all blocks processed, [] int32 (see `StageReport.tokens`)."""
        return sum((jnp.sum(r.tokens) for r in self.reports), jnp.int32(0))

    @property
    def converged(self) -> Bool[Array, ""]:
        """Whether every chunk of every block converged for every sample, [] bool."""
        return jnp.all(jnp.stack([jnp.bool_(True), *(jnp.all(r.converged) for r in self.reports)]))


def inverse(
    flow: Flow,
    z: Shaped[AnyArray, "B *size"],
    cond: Shaped[AnyArray, "B *rest"] | None = None,
    *,
    solver: AnySolver | None = None,
    guidance: AnyGuidance | None = None,
    prefix: Shaped[AnyArray, "..."] | None = None,
    window: SlidingWindow | None = None,
    temperature: float | Float[Array, ""] | None = None,
    later_cond: Shaped[AnyArray, "..."] | None = None,
    learned: LearnedInverse | None = None,
    ready: bool = True,
    noise_level: float | Float[Array, ""] | None = None,
    with_logdet: bool = False,
    lengths: Int[AnyArray, "B"] | None = None,
) -> Inversion:
    """Maps noise to data; one compiled program under `jax.jit` (solver and window are static).

    TARFlow samples from its prior: z is first scaled by the square root of `prior_variance`. Where that is not 1 (the
    volume-preserving variant), inverting a forward pass therefore takes z / sqrt(prior_variance).

    Args:
      flow: the flow.
      z: noise [B, H, W, C] or [B, T, H, W, C].
      cond: as in `Flow.forward`.
      solver: the solver of all blocks, or a `PerBlock`; None means `Sequential()`.
      guidance: classifier-free guidance.
      prefix: given frames [B, P, H, W, C]; the result holds them unchanged, followed by T - P new ones.
      window: generate a video longer than the trained one in overlapping windows.
      temperature: scalar that divides every attention logit of the inverse, the re-encoding of given frames included
        (STARFlow; TARFlow's belongs to `LinearGuidance`).
      later_cond: condition of the windows after the first, shaped as `cond` (another caption, for example); None means
        `cond`.
      learned: the learned inverse of the flow, whose estimates solvers with `start="learned"` start from. Each block
        gets the estimate for its exact noise, so that errors of one block do not reach the next.
      ready: whether the parameters are made ready for inference first (`nn.ready_parameters`); False reads them as they
        are given, which needs less memory.
      noise_level: scalar that a noise-conditioned flow reads, the level of the noise in the result and in `prefix`;
        None for its highest one.
      with_logdet: whether to return the log-determinant, which is read off the last network evaluation of every token.
      lengths: as in `Flow.forward`; the padding of the result is 0.

    Raises:
      ValueError: the arguments contradict each other or the configuration.
    """
    config = flow.config
    solvers = [solver_for_block(solver or Sequential(), index, config.num_blocks) for index in range(config.num_blocks)]
    grid = Grid.from_shape(config, z.shape)
    check_lengths(config, grid, lengths, z.shape[0])
    cond = condition_or_default(config, cond, z.shape[0])
    check_later(cond, later_cond)
    check_guidance(config, guidance, cond)
    if temperature is not None:
        check(
            config.family == "starflow",
            "temperature is only supported by family 'starflow'; TARFlow uses that of LinearGuidance",
        )
        check(jnp.ndim(temperature) == 0, f"temperature must be a scalar, got shape {jnp.shape(temperature)}")
    check_frames(flow, grid, z.shape, prefix, window)
    if noise_level is not None:
        check(jnp.ndim(noise_level) == 0, f"noise_level must be a scalar, got shape {list(jnp.shape(noise_level))}")
    level = resolved_level(config, noise_level, z.shape[0])
    for block_solver in solvers:
        check_estimates(block_solver, learned)
    if with_logdet:
        check_logdet(solvers, prefix, window)
    if ready:
        flow = ready_for_inference(flow)
        learned = None if learned is None else ready_for_inference(learned)
    tokens = flow.noise_tokens(z)
    entered = None
    if prefix is not None:
        entered = flow.forward(prefix, cond, guidance=guidance, noise_level=level).tokens
    stream = None
    if learned is not None:
        if entered is not None:  # the network reads the noise of all frames
            tokens = tokens.at[:, : entered[-1].shape[1]].set(entered[-1])
        stream = learned.begin(grid, z.shape[0], cond, 0.0 if guidance is None else guidance.weight)
    states, reports, logdets = [z.astype(jnp.float32)], [], [jnp.zeros(z.shape[:1])]
    for index in reversed(range(config.num_blocks)):
        if not flow.blocks[index].is_identity:
            given, estimate = None if entered is None else entered[index], None
            if learned is not None and stream is not None:
                stream, estimate = learned.propose(index, stream, tokens)
            task = BlockTask(
                flow,
                cond,
                guidance,
                temperature,
                later_cond,
                level,
                lengths,
                index=index,
                grid=grid,
                solver=solvers[index],
                window=window,
                with_logdet=with_logdet,
            )
            tokens, report, logdet = task.solve_with_logdet(tokens, given, estimate)
            logdets += [] if logdet is None else [logdet]
            if solvers[index].reads_estimate:  # the pass of the network that gave it is an evaluation, too
                report = dataclasses.replace(report, evaluations=report.evaluations.at[0].add(1))
            reports.append(report)
        elif entered is not None:
            tokens = tokens.at[:, : entered[index].shape[1]].set(entered[index])
        states.append(flow.data_of(tokens))
    clean = None
    if learned is not None and stream is not None:
        clean = flow.unmapped_data(learned.clean(stream, tokens))
    if prefix is not None:
        states[-1] = states[-1].at[:, : prefix.shape[1]].set(prefix.astype(jnp.float32))
    x = states[-1] if config.pixel_map is None else flow.unmapped_data(tokens)
    x = x if lengths is None else without_padding(x, lengths)
    if not with_logdet:
        return Inversion(x, tuple(states), tuple(reports), clean)
    if config.pixel_map is not None:  # without a network
        slopes = map_pixels(config.pixel_map, x)[1]
        slopes = slopes if lengths is None else without_padding(slopes, lengths)
        logdets.append(jnp.sum(slopes.reshape(x.shape[0], -1), axis=1))
    return Inversion(x, tuple(states), tuple(reports), clean, jnp.sum(jnp.stack(logdets), axis=0))


@flax.struct.dataclass
class BlockTask:
    """The inversion of one block: token orders, given frames and windows, around spans and their solver.

    Attributes:
      flow, cond, guidance, temperature, index, solver: as in `Span`.
      later_cond, noise_level, lengths: as in `inverse`.
      grid: grid of the whole call.
      window, with_logdet: as in `inverse`.
    """

    flow: Flow
    cond: jax.Array | None
    guidance: AnyGuidance | None
    temperature: float | Float[Array, ""] | None
    later_cond: jax.Array | None = None
    noise_level: NoiseLevel | None = None
    lengths: jax.Array | None = None
    index: int = flax.struct.field(pytree_node=False, kw_only=True)
    grid: Grid = flax.struct.field(pytree_node=False, kw_only=True)
    solver: Solver = flax.struct.field(pytree_node=False, kw_only=True)
    window: SlidingWindow | None = flax.struct.field(pytree_node=False, default=None)
    with_logdet: bool = flax.struct.field(pytree_node=False, default=False)

    def span(self, tokens: int, *, start: int = 0, context: int = 0) -> Span:
        """The span of `tokens` unsolved tokens after `context` encoded ones; start: index of the first of them."""
        grid, folded = self.flow.block_grid(self.index, self.grid)
        if grid.frames is not None:
            grid = grid.with_frames((context + tokens) // grid.frame)
        return Span(
            self.flow,
            self.flow.block_condition(self.index, self.cond, self.grid, self.lengths),
            self.guidance,
            self.temperature,
            self.noise_level,
            index=self.index,
            grid=grid,
            folded=folded,
            solver=self.solver,
            start=start,
            context=context,
            with_log_scales=self.with_logdet,
        )

    def solve(
        self,
        tokens: Float[Array, "B *grid c"],
        given: Float[Array, "B *given c"] | None = None,
        estimate: Float[Array, "B *grid c"] | None = None,
    ) -> tuple[Float[Array, "B *grid c"], BlockReport]:
        """Inverts raster tokens [B, ([T,] h, w), c].

        Args:
          given: the block's input for the given frames.
          estimate: of the result, for a solver that starts from one.
        """
        tokens, report, _ = self.solve_with_logdet(tokens, given, estimate)
        return tokens, report

    def solve_with_logdet(
        self,
        tokens: Float[Array, "B *grid c"],
        given: Float[Array, "B *given c"] | None = None,
        estimate: Float[Array, "B *grid c"] | None = None,
    ) -> tuple[Float[Array, "B *grid c"], BlockReport, Float[Array, "B"] | None]:
        """`solve`, and log |dz/dx| of the block; None unless `with_logdet`."""
        flow, index = self.flow, self.index
        grid, folded = flow.block_grid(index, self.grid)
        z = flow.to_block(index, tokens, self.grid, self.lengths)
        start = None if estimate is None else flow.to_block(index, estimate, self.grid, self.lengths)
        # A block inside frames needs no prefix: each frame is inverted alone, and given ones are inserted below.
        prefix = None if grid.frames is None else self._ordered_prefix(given)
        if self.with_logdet:  # without given frames, see `check_logdet`
            z, start = widened(z), None if start is None else widened(start)
        if grid.frames is None or self.window is None or grid.frames <= self.window.frames:
            parts, report = self._solve_span(z, prefix, start)
        else:
            parts, report = self._solve_windows(z, prefix, start)
        x = jnp.concatenate(([] if prefix is None else [prefix]) + [parts], axis=1)
        logdet = None
        if self.with_logdet:
            x, log_scales = data_half(x), log_scale_half(x)
            log_scales = log_scales if self.lengths is None else without_padding(log_scales, self.lengths)
            logdet = -jnp.sum(log_scales.reshape(tokens.shape[0], -1), axis=1)
        x = x if self.lengths is None else without_padding(x, self.lengths)
        raster = flow.from_block(index, x, self.grid, tokens.shape[0], self.lengths)
        if given is not None:
            raster = raster.at[:, : given.shape[1]].set(given)
        return raster, BlockReport(**vars(_worst_frames(report, folded)), block=index), logdet

    def _ordered_prefix(self, given: Float[Array, "B *given c"] | None) -> Float[Array, "B p c"] | None:
        if given is None:
            return None
        return self.flow.to_block(self.index, given, self.grid.with_frames(given.shape[1]))

    def _solve_span(
        self, z: Float[Array, "B N c"], prefix: Float[Array, "B p c"] | None, start: Float[Array, "B N c"] | None
    ) -> tuple[Float[Array, "B n c"], Report]:
        """Solves tokens that pass through one cache.

        Args:
          z: noise of all tokens; start: their initial estimates, or None.
          prefix: the given tokens, at the beginning.
        """
        given = 0 if prefix is None else prefix.shape[1]
        estimate = None if start is None else start[:, given:]
        span = self.span(z.shape[1] - given, start=given, context=given)
        return span.solve(z[:, given:], prefix, estimate=estimate)

    def _solve_windows(
        self, z: Float[Array, "B N c"], prefix: Float[Array, "B p c"] | None, start: Float[Array, "B N c"] | None
    ) -> tuple[Float[Array, "B n c"], Report]:
        """Solves G frames, then G - Q at a time, after Q frames of context that are re-encoded from position 0."""
        window, grid = self.window, self.grid
        assert window is not None and grid.frames is not None
        frame = grid.frame
        tokens = window.frames * frame
        x, report = self._solve_span(z[:, :tokens], prefix, None if start is None else start[:, :tokens])
        parts, reports = [x], [report]
        if prefix is not None:
            x = jnp.concatenate([prefix, x], axis=1)
        fresh, context = (window.frames - window.num_context) * frame, window.num_context * frame
        done = window.frames * frame
        full, rest = divmod(grid.tokens - done, fresh)
        # The last G frames so far: the context, and frames before it that an initial estimate may read.
        history = x[:, -done:]
        later = self if self.later_cond is None else self.replace(cond=self.later_cond)  # type: ignore[attr-defined]

        def advance(
            history: jax.Array, inputs: tuple[jax.Array, jax.Array | None]
        ) -> tuple[jax.Array, tuple[jax.Array, Report]]:
            noise, estimate = inputs
            span = later.span(noise.shape[1], start=done, context=context)
            x, report = span.solve(noise, history[:, -context:], history, estimate)
            return jnp.concatenate([history, x], axis=1)[:, -done:], (x, report)

        inputs = (z, start)
        if full:
            stretch = z[:, done : done + full * fresh]

            def windows(array: jax.Array) -> jax.Array:
                stretch = array[:, done : done + full * fresh]
                return stretch.reshape(z.shape[0], full, fresh, -1).swapaxes(0, 1)

            history, (x, report) = jax.lax.scan(advance, history, jax.tree.map(windows, inputs))
            parts.append(jnp.moveaxis(x, 0, 1).reshape(stretch.shape))
            reports.append(_join_windows(report, fresh))
        if rest:
            _, (x, report) = advance(history, jax.tree.map(lambda array: array[:, done + full * fresh :], inputs))
            parts.append(x)
            reports.append(dataclasses.replace(report, starts=report.starts + full * fresh))
        joined = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *reports)
        return jnp.concatenate(parts, axis=1), joined


def _worst_frames(report: Report, folded: int) -> Report:
    """The report of B videos from one of B x T frames: that of the worst frame of each."""
    if folded == 1:
        return report

    def frames(a: jax.Array) -> jax.Array:
        return a.reshape(a.shape[0], -1, folded)

    return dataclasses.replace(
        report,
        iterations=frames(report.iterations).max(axis=2),
        residual=frames(report.residual).max(axis=2),
        converged=frames(report.converged).all(axis=2),
    )


def _join_windows(report: Report, tokens: int) -> Report:
    """One report from reports stacked over windows of `tokens` tokens, [windows, chunks, ...]."""
    offsets = jnp.arange(report.starts.shape[0], dtype=jnp.int32)[:, None] * tokens
    report = dataclasses.replace(report, starts=report.starts + offsets)
    joined: Report = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), report)
    return joined
