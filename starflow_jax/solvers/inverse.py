"""Noise to data: every block inverted in turn, with guidance, given frames and sliding windows.

Specification, sections 3 to 5.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from starflow_jax.config.checks import check, check_integer
from starflow_jax.flows.block import Predict
from starflow_jax.flows.flow import Flow, check_guidance, fold_condition
from starflow_jax.flows.guidance import AnyGuidance, Guidance, guided
from starflow_jax.flows.order import Grid, block_order
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers.base import Solution, Solver
from starflow_jax.solvers.sequential import Sequential


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
    """How a video longer than the trained one is generated (specification, section 4, "Longer than trained").

    Attributes:
      frames: G, generated together. context: Q < G, kept as context of the next window; None means G - 1.
    """

    frames: int
    context: int | None = None

    def __post_init__(self):
        check_integer("window.frames", self.frames, minimum=2)
        if self.context is not None:
            check_integer("window.context", self.context, minimum=1)
            check(
                self.context < self.frames,
                f"window.context must be below window.frames={self.frames}, got {self.context}",
            )

    @property
    def kept(self) -> int:
        """Q, resolved."""
        return self.frames - 1 if self.context is None else self.context


@flax.struct.dataclass
class BlockReport:
    """How one block's inversion went; arrays over its chunks, as in `Solution`."""

    block: int = flax.struct.field(pytree_node=False)
    starts: jax.Array
    lengths: jax.Array
    iterations: jax.Array
    residual: jax.Array
    converged: jax.Array
    residuals: jax.Array


@flax.struct.dataclass
class Inversion:
    """What `inverse` returns.

    Attributes:
      x: data in the layout of z, float32.
      states: data-layout arrays: z as the stack received it, then the state after each inverted block (x last).
      reports: one a block, in the order of inversion (deep block first; identity blocks have none).
    """

    x: jax.Array
    states: tuple[jax.Array, ...]
    reports: tuple[BlockReport, ...]

    @property
    def evaluations(self) -> jax.Array:
        """Network evaluations in all."""
        return sum(jnp.sum(r.iterations) for r in self.reports)  # type: ignore[return-value]

    @property
    def converged(self) -> jax.Array:
        """Whether every chunk of every block converged."""
        return jnp.all(jnp.concatenate([jnp.ones((1,), bool), *(r.converged for r in self.reports)]))


def inverse(
    flow: Flow,
    z: jax.Array,
    cond: jax.Array | None = None,
    *,
    solver: Solver | None = None,
    guidance: AnyGuidance | None = None,
    prefix: jax.Array | None = None,
    window: SlidingWindow | None = None,
    temperature: float | jax.Array | None = None,
) -> Inversion:
    """Maps noise to data; one compiled program under `jax.jit` (solver and window are static).

    TARFlow draws from its prior: z is scaled by the square root of `prior_variance` first, so that the inverse of a
    forward pass takes z / sqrt(prior_variance) where that is not 1 (the volume-preserving variant).

    Args:
      flow: the parameters.
      z: noise [B, H, W, C] or [B, T, H, W, C].
      cond: as in `Flow.forward`.
      solver: how blocks are inverted; None means `Sequential()`.
      guidance: classifier-free guidance.
      prefix: given frames [B, P, H, W, C]; they come back exactly, followed by T - P new ones.
      window: generate a video longer than the trained one in overlapping windows.
      temperature: scalar that divides every attention logit of the inverse, the re-encoding of given frames included
        (STARFlow; TARFlow's belongs to `LinearGuidance`).

    Raises:
      ValueError: where the arguments contradict each other or the configuration.
    """
    solver = Sequential() if solver is None else solver
    config = flow.config
    grid = Grid.of(config, z.shape)
    flow.check_condition(cond, z.shape[0])
    check_guidance(config, guidance, cond)
    if temperature is not None:
        check(config.family == "starflow", "temperature belongs to family 'starflow'; TARFlow's is LinearGuidance's")
        check(jnp.ndim(temperature) == 0, f"temperature must be a scalar, got shape {jnp.shape(temperature)}")
    _check_frames(flow, grid, z.shape, prefix, window)
    tokens = flow.tokens_of(z)
    if flow.prior_variance is not None:
        tokens = tokens * jnp.sqrt(flow.prior_variance[...]).reshape(1, *grid.shape, -1)
    entered = None
    if prefix is not None:
        entered = flow.forward(prefix, cond, guidance=guidance).tokens
    states, reports = [z.astype(jnp.float32)], []
    for index in reversed(range(config.num_blocks)):
        if not flow.blocks[index].is_identity:
            given = None if entered is None else entered[index]
            task = _BlockTask(flow, index, grid, cond, guidance, solver, window, temperature)
            tokens, report = task.solve(tokens, given)
            reports.append(report)
        elif entered is not None:
            tokens = tokens.at[:, : entered[index].shape[1]].set(entered[index])
        states.append(flow.data_of(tokens))
    if prefix is not None:
        states[-1] = states[-1].at[:, : prefix.shape[1]].set(prefix.astype(jnp.float32))
    return Inversion(states[-1], tuple(states), tuple(reports))


def _check_frames(flow: Flow, grid: Grid, shape, prefix, window) -> None:
    """Given frames and sliding windows need frames that stay in order in every block that spans frames."""
    if prefix is None and window is None:
        return
    config = flow.config
    what = "prefix" if prefix is not None else "window"
    check(grid.frames is not None, f"{what} needs a video z [B, T, H, W, C], got shape {tuple(shape)}")
    for index in range(config.num_blocks):
        crosses = not config.is_local(index) and not flow.blocks[index].is_identity
        if crosses and block_order(config, index, grid) == "flip":
            raise ValueError(f"{what} needs temporal_causal=True: block {index} reads the frames backwards")
    if prefix is not None:
        fits = prefix.ndim == 5 and prefix.shape[0] == shape[0] and prefix.shape[2:] == tuple(shape[2:])
        check(
            fits and 1 <= prefix.shape[1] < shape[1],
            f"prefix must be [{shape[0]}, P, {', '.join(map(str, shape[2:]))}] with 1 <= P < {shape[1]}, "
            f"got shape {tuple(prefix.shape)}",
        )
        if window is not None:
            check(
                prefix.shape[1] < window.frames,
                f"prefix must be shorter than window.frames={window.frames}, got {prefix.shape[1]} frames",
            )


@dataclasses.dataclass(frozen=True)
class _BlockTask:
    """The inversion of one block: orders, guidance, given tokens and windows around a solver."""

    flow: Flow
    index: int
    grid: Grid
    cond: jax.Array | None
    guidance: AnyGuidance | None
    solver: Solver
    window: SlidingWindow | None
    temperature: float | jax.Array | None

    def solve(self, tokens: jax.Array, given: jax.Array | None) -> tuple[jax.Array, BlockReport]:
        """Inverts raster tokens [B, ([T,] h, w), c]; given: the first frames' tokens as they entered the block."""
        flow, index = self.flow, self.index
        own, frames = flow.block_grid(index, self.grid)
        z = flow.to_block(index, tokens, self.grid)
        # Inside frames nothing needs a prefix: each frame is inverted alone, and given ones are put back below.
        prefix = None if own.frames is None else self._ordered_prefix(given)
        if own.frames is None or self.window is None or own.frames <= self.window.frames:
            solutions = [self._solve_span(z, prefix, own, frames)]
        else:
            solutions = self._solve_windows(z, prefix, own)
        x = jnp.concatenate(([] if prefix is None else [prefix]) + [s.x for s in solutions], axis=1)
        raster = flow.from_block(index, x, self.grid, tokens.shape[0])
        if given is not None:
            raster = raster.at[:, : given.shape[1]].set(given)
        joined = {
            name: jnp.concatenate([getattr(s, name) for s in solutions])
            for name in ("starts", "lengths", "iterations", "residual", "converged", "residuals")
        }
        return raster, BlockReport(block=index, **joined)

    def _ordered_prefix(self, given: jax.Array | None) -> jax.Array | None:
        if given is None:
            return None
        return self.flow.to_block(self.index, given, self.grid.with_frames(given.shape[1]))

    def _predictor(self, own: Grid, batch: int, frames: int, padding: int) -> tuple[Predict, KVCache]:
        """The block's prediction, guided where it is guided, with the text already in the cache."""
        block, guidance = self.flow.blocks[self.index], self.guidance
        cond = self.cond
        temperature = self.temperature
        if not self.flow.is_guided(self.index, guidance):
            folded = fold_condition(cond, frames)
            return block.predictor(folded, own, batch, padding=padding, temperature=temperature)
        assert guidance is not None
        if cond is not None:
            pair = (cond, guidance.unconditional(cond))
            cond = jnp.concatenate([fold_condition(c, frames) for c in pair])  # type: ignore[misc]
        if not isinstance(guidance, Guidance):
            temperature = guidance.temperatures(batch)
        predict, cache = block.predictor(cond, own, 2 * batch, padding=padding, temperature=temperature)
        return guided(predict, guidance, own.tokens), cache

    def _solve_span(self, z, prefix, own: Grid, frames: int) -> Solution:
        """Solves tokens that pass through one cache; prefix: the given tokens at their beginning."""
        given = 0 if prefix is None else prefix.shape[1]
        return self._solve_after(z[:, given:], prefix, prefix, own, frames, start=given)

    def _solve_after(self, z, context, history, own: Grid, frames: int, *, start: int) -> Solution:
        """Solves z after `context`, re-encoded from the start token on; `history` is what came before in the video.

        They differ in a sliding window only, whose first iteration may look further back than its context.
        """
        batch = z.shape[0]
        block = self.flow.blocks[self.index]
        padding = self.solver.padding(z.shape[1], start, own.frame)
        span = (
            own
            if own.frames is None
            else own.with_frames((z.shape[1] + (0 if context is None else context.shape[1])) // own.frame)
        )
        predict, cache = self._predictor(span, batch, frames, padding)
        shift = 0
        lead = block.start_token(batch)
        exact = None
        if block.sos_embed is None and context is None:
            # Without a start token, token 0 has mean 0 and scale 1: it is its own noise.
            exact, z, shift = z[:, :1], z[:, 1:], 1
            context = history = exact
        if context is None:
            known = lead
        else:
            count = context.shape[1]
            shift = count
            # The cache gets every known token but the last, which the first chunk reads itself.
            if block.sos_embed is not None:
                _, cache = predict(jnp.concatenate([lead, context[:, :-1]], axis=1), 0, cache)
            elif count > 1:
                _, cache = predict(context[:, :-1], 1, cache)
            known = jnp.concatenate([lead, history], axis=1)

        def after_known(previous, first, cache):
            return predict(previous, first + shift, cache)

        begin = start if exact is None else start + 1
        if z.shape[1] == 0:
            assert exact is not None  # the only token there was
            return _solved(exact, cache)
        solution = self.solver(after_known, z, known, cache, start=begin, frame=own.frame)
        return (
            solution if exact is None else dataclasses.replace(solution, x=jnp.concatenate([exact, solution.x], axis=1))
        )

    def _solve_windows(self, z, prefix, own: Grid) -> list[Solution]:
        """G frames, then G - Q more at a time, each after its Q frames of context re-encoded from position 0."""
        window = self.window
        assert window is not None and own.frames is not None
        frame = own.frame
        first = self._solve_span(z[:, : window.frames * frame], prefix, own, 1)
        x = first.x if prefix is None else jnp.concatenate([prefix, first.x], axis=1)
        first = dataclasses.replace(first, cache=None)
        fresh = window.frames - window.kept
        full, rest = divmod(own.frames - window.frames, fresh)
        solutions = [first]
        # The last G frames so far: the context, and what a first iteration may read before it.
        history = x[:, -window.frames * frame :]
        done = window.frames * frame

        def advance(history, noise):
            context = history[:, -window.kept * frame :]
            solution = self._solve_after(noise, context, history, own, 1, start=done)
            history = jnp.concatenate([history, solution.x], axis=1)[:, -window.frames * frame :]
            return history, dataclasses.replace(solution, cache=None)

        if full:
            stretch = z[:, done : done + full * fresh * frame]
            noise = stretch.reshape(z.shape[0], full, fresh * frame, -1).swapaxes(0, 1)
            history, solved = jax.lax.scan(advance, history, noise)
            solutions.append(_join_windows(solved, fresh * frame))
        if rest:
            _, solution = advance(history, z[:, done + full * fresh * frame :])
            solutions.append(dataclasses.replace(solution, starts=solution.starts + full * fresh * frame))
        return solutions


def _solved(x: jax.Array, cache: KVCache) -> Solution:
    """The solution of a sequence that took no evaluation."""
    none = jnp.zeros((0,), jnp.int32)
    return Solution(x, cache, none, none, none, jnp.zeros((0,)), jnp.zeros((0,), bool), jnp.zeros((0, 0)))


def _join_windows(solved: Solution, tokens: int) -> Solution:
    """Solutions stacked over windows [windows, ...] as one."""
    windows, chunks = solved.starts.shape
    offsets = jnp.arange(windows, dtype=jnp.int32)[:, None] * tokens
    flat = {
        name: getattr(solved, name).reshape(windows * chunks, *getattr(solved, name).shape[2:])
        for name in ("lengths", "iterations", "residual", "converged", "residuals")
    }
    x = jnp.moveaxis(solved.x, 0, 1)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return dataclasses.replace(solved, x=x, starts=(solved.starts + offsets).reshape(-1), **flat)
