"""The compiled programs of the pipelined inverse (`pipeline.py`) and their static arguments."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.guidance import AnyGuidance
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.order import Grid
from starflow_jax.flows.parameters import Params, abstract, merge, overlaid
from starflow_jax.flows.parameters import ready as made_ready
from starflow_jax.solvers.base import Kind, Solver, StageReport, State
from starflow_jax.solvers.inverse import BlockReport, BlockTask
from starflow_jax.solvers.span import Span


class Inputs(NamedTuple):
    """Inputs of every block besides the tokens; as in `inverse`."""

    cond: jax.Array | None
    guidance: AnyGuidance | None
    temperature: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Window:
    """One sliding window of the deep block.

    Attributes:
      config: of the flow.
      solver: of the deep block.
      grid: of the frames in the cache, context included.
      start, context: as in `Span`, in tokens.
    """

    config: FlowConfig
    solver: Solver
    grid: Grid
    start: int
    context: int

    def span(self, flow: Flow, inputs: Inputs) -> Span:
        """The span of this window."""
        deep = self.config.num_blocks - 1
        return Span(
            flow, *inputs, index=deep, grid=self.grid, folded=1, solver=self.solver, start=self.start,
            context=self.context,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
    """The static arguments of a stage: its window, its kind, and how many frames it passes on."""

    window: Window
    kind: Kind
    group: int


@dataclasses.dataclass(frozen=True)
class Shallow:
    """The static arguments of the shallow blocks; grid: of the frames of a call."""

    config: FlowConfig
    solvers: tuple[Solver, ...]
    grid: Grid


def partial_flow(config: FlowConfig, params: Params) -> Flow:
    """A flow with parameters for some blocks only; the other blocks hold ShapeDtypeStructs and must not be used."""
    definition, leaves = abstract(config)
    return merge(definition, overlaid(leaves, params))


def ready(config: FlowConfig, params: Params) -> Params:
    """The parameters of all blocks made ready for inference, by a program of its own where that changes any."""
    return params if config.dtype == "float32" else _ready(config, params)


@functools.partial(jax.jit, static_argnums=0)
def _ready(config: FlowConfig, params: Params) -> Params:
    return made_ready(abstract(config)[0], params)


@functools.partial(jax.jit, static_argnums=0)
def ordered(config: FlowConfig, z: Float[Array, "B T H W C"]) -> Float[Array, "B N c"]:
    """Noise [B, T, H, W, C] in the order of the deep block, [B, N, c]."""
    flow = partial_flow(config, {})
    return flow.to_block(config.num_blocks - 1, flow.tokens_of(z), Grid.from_shape(config, z.shape))


@functools.partial(jax.jit, static_argnums=0)
def entering(
    config: FlowConfig, params: Params, inputs: Inputs, given: Float[Array, "B P H W C"]
) -> Float[Array, "B p c"]:
    """The deep block's input for given frames [B, P, H, W, C], in its order, [B, P * F, c]."""
    flow = partial_flow(config, params)
    deep = config.num_blocks - 1
    flow.blocks = nnx.List(list(flow.blocks)[:deep])
    tokens = flow.forward(given, inputs.cond, guidance=inputs.guidance).tokens[-1]
    return flow.to_block(deep, tokens, Grid.from_shape(config, given.shape))


@functools.partial(jax.jit, static_argnums=0)
def estimates(
    config: FlowConfig, learned: LearnedParams, inputs: Inputs, z: Float[Array, "B T H W C"]
) -> tuple[Float[Array, "B N c"], tuple[Float[Array, "B T rows columns c"], ...]]:
    """The estimates of a learned inverse, in one pass over the noise of all frames.

    Returns:
      Those of the deep block's input, in its order, and those of the inputs of the other blocks, block 0 first.
    """
    flow = partial_flow(config, {})
    weight = 0.0 if inputs.guidance is None else inputs.guidance.weight
    states = learned.module(config)(flow.tokens_of(z), inputs.cond, weight).states
    deep = config.num_blocks - 1
    return flow.to_block(deep, states[deep], Grid.from_shape(config, z.shape)), states[:deep]


@functools.partial(jax.jit, static_argnums=0)
def begin(
    window: Window,
    params: Params,
    inputs: Inputs,
    z: Float[Array, "B N c"],
    first: Int[Array, ""],
    history: Float[Array, "B history c"] | None,
    estimate: Float[Array, "B N c"] | None,
) -> State:
    """The state before a window's first stage.

    Args:
      window: the static arguments.
      params, inputs: of the deep block.
      z: noise of all tokens, in the deep block's order.
      first: index of the window's first new token.
      history: [B, history, c], the tokens before it, at least the context; None without context.
      estimate: of all tokens, in the deep block's order; None without a learned inverse.
    """

    def in_window(array: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, first, window.grid.tokens - window.context, axis=1)

    noise, start = in_window(z), None if estimate is None else in_window(estimate)
    span = window.span(partial_flow(window.config, params), inputs)
    if not window.context:
        return span.begin(noise, estimate=start)
    assert history is not None
    return span.begin(noise, history[:, -window.context :], history, start)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def advance(
    step: Step, params: Params, inputs: Inputs, state: State, indices: Int[Array, "4"]
) -> tuple[State, StageReport, Float[Array, "B frames rows columns c"]]:
    """Runs one stage; indices: [4], its first token, its length, the first and the last frame that it completes.

    Returns:
      The state, the report, and `step.group` frames from the first completed one on, the last one repeated, as raster
      tokens [B, group, h, w, c].
    """
    window, group = step.window, step.group
    flow = partial_flow(window.config, params)
    first, length, complete, last = indices
    state, report = window.span(flow, inputs).advance(state, first, length, kind=step.kind)
    batch, frame = state.noise.shape[0], window.grid.frame
    frames = state.x.reshape(batch, -1, frame, state.noise.shape[-1])
    # Padding repeats a frame of the same videos, so that a residual over the batch is not affected by other values.
    chosen = jnp.take(frames, jnp.minimum(complete + jnp.arange(group), last), axis=1)
    grid = window.grid.with_frames(group)
    if not group:
        return state, report, jnp.zeros((batch, *grid.shape, frames.shape[-1]))
    flat = chosen.reshape(batch, group * frame, -1)
    return state, report, flow.from_block(window.config.num_blocks - 1, flat, grid, batch)


@functools.partial(jax.jit, static_argnums=0)
def next_history(length: int, history: Float[Array, "B history c"] | None, state: State) -> Float[Array, "B p c"]:
    """The last `length` tokens after a window, which the next one may read."""
    solved = state.x if history is None else jnp.concatenate([history, state.x], axis=1)
    return solved[:, -length:]


@functools.partial(jax.jit, static_argnums=0)
def finish(
    kind: Shallow,
    params: Params,
    inputs: Inputs,
    tokens: Float[Array, "B frames rows columns c"],
    estimated: tuple[tuple[Float[Array, "B T rows columns c"], ...], Int[Array, "frames"]] | None,
) -> tuple[tuple[Float[Array, "B H W C"], ...], tuple[BlockReport, ...]]:
    """Applies the shallow blocks to raster tokens of the deep block; returns one array [B, H, W, C] per frame.

    Args:
      kind, params, inputs: of the shallow blocks; tokens: of some frames.
      estimated: estimates of the blocks' inputs for all frames, and the indices of these frames; None without a learned
        inverse.
    """
    flow = partial_flow(kind.config, params)
    reports: list[Any] = []
    for index in reversed(range(kind.config.num_blocks - 1)):
        if not flow.blocks[index].is_identity:
            task = BlockTask(flow, *inputs, index=index, grid=kind.grid, solver=kind.solvers[index])
            start = None if estimated is None else jnp.take(estimated[0][index], estimated[1], axis=1)
            tokens, report = task.solve(tokens, estimate=start)
            reports.append(report)
    x = flow.data_of(tokens)
    return tuple(x[:, frame] for frame in range(x.shape[1])), tuple(reports)
