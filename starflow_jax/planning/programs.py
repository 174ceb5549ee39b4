"""The programs to plan: the training step and a Jacobi stage of the deep block, traced on abstract arrays."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.costs.flops import Work
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.guidance import make_guidance
from starflow_jax.flows.order import Grid
from starflow_jax.flows.parameters import Params, abstract, merge, ready
from starflow_jax.models.autoencoders import Autoencoder
from starflow_jax.nn.divided_cache import cache_cuts
from starflow_jax.planning.budget import schedule
from starflow_jax.sharding.layout import Cut, Layout, located
from starflow_jax.solvers.base import State
from starflow_jax.solvers.span import Span
from starflow_jax.training.checkpoints.manager import abstract_state
from starflow_jax.training.step.frozen_autoencoder import load_encoder
from starflow_jax.training.step.frozen_text import load_text
from starflow_jax.training.step.train_step import train_steps


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to be compiled.

    Attributes:
      function: the jitted function; call `function.trace(*arguments)`.
      arguments: its arguments, static values and ShapeDtypeStructs with shardings.
    """

    function: Any
    arguments: tuple[Any, ...]

    @property
    def arrays(self) -> list[jax.ShapeDtypeStruct]:
        """The arguments that are arrays on the devices."""
        return [leaf for leaf in jax.tree.leaves(self.arguments) if isinstance(leaf, jax.ShapeDtypeStruct)]


def training_program(config: ExperimentConfig, work: Work, layout: Layout | None) -> Program:
    """One call of `training.step.train_step.train_steps` with one batch of the experiment's data sources.

    Args:
      config: the experiment, with its batch size, accumulation count and the mesh of `layout`.
      work: sizes of the data; its batch is the configuration's.
      layout: the layout of the devices; None for one device.

    Raises:
      ValueError: see `training.step.frozen_autoencoder.load_encoder` and `training.step.frozen_text.load_text`.
    """
    encoder = load_encoder(config)
    batches, levels = _batch(config, work, None if encoder is None else encoder.autoencoder)
    encoder = None if encoder is None else encoder.abstract(layout)
    text = load_text(config) if config.text is None and "text" in batches else None
    text = None if text is None else text.abstract(layout)
    if layout is not None:
        batches = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.batch(leaf.shape, 1))
            for name, leaf in batches.items()
        }
    state, count = abstract_state(config, layout), _scalar(layout)
    return Program(train_steps, (config, levels, state, batches, count, layout, encoder, text))


def _batch(
    config: ExperimentConfig, work: Work, autoencoder: Autoencoder | None
) -> tuple[dict[str, jax.ShapeDtypeStruct], int]:
    """A batch of the loader with the leading axis of `train_steps`, and the number of values a pixel can take."""
    flow = config.flow
    stride, channels = (1, flow.channels) if autoencoder is None else (autoencoder.stride, autoencoder.pixel_channels)
    shape = (work.rows * flow.patch_size * stride, work.columns * flow.patch_size * stride, channels)
    step = 1 if autoencoder is None else autoencoder.frame_stride
    frames = () if work.frames is None else (1 + (work.frames - 1) * step,)
    latents = config.data.has_latents
    dtype, levels = (jnp.float32, 0) if latents else (jnp.uint8, 256)
    batch = {
        "image": jax.ShapeDtypeStruct((1, work.batch, *frames, *shape), dtype),
        "label": jax.ShapeDtypeStruct((1, work.batch), jnp.int32),
    }
    if config.text is not None or (config.data.text_encoder is not None and not latents):
        batch["text"] = jax.ShapeDtypeStruct((1, work.batch, work.text), jnp.int32)
    elif flow.text_dim:
        batch["text_states"] = jax.ShapeDtypeStruct((1, work.batch, work.text, flow.text_dim), jnp.float32)
    return batch, levels


def inverse_program(config: ExperimentConfig, work: Work, layout: Layout | None) -> Program:
    """A stage of Jacobi iteration in the deep block, on a chunk of the size in the paper's schedule.

    Its loop ends on a condition on the data, so one iteration is counted. With `sample.parameters` "ready", it reads
    parameters that were made ready before it; those that are stored are arguments too, since they stay in memory.

    Args:
      config: the experiment whose flow is planned.
      work: sizes of the sequence, and the number of samples per batch (guidance doubles the rows).
      layout: the layout of the devices; None for one device.
    """
    flow, index = config.flow, config.flow.num_blocks - 1
    definition, params = abstract(flow, layout)
    solver, grid = schedule(work), Grid(work.frames, work.rows, work.columns)
    text = jax.ShapeDtypeStruct((work.batch, work.text, flow.text_dim), jnp.bfloat16) if flow.text_dim else None

    def span(params: Any, cond: jax.Array | None) -> Span:
        model: Flow = merge(definition, params)
        guidance = make_guidance(flow.family, cond, 1.0)
        return Span(model, cond, guidance, None, index=index, grid=grid, folded=1, solver=solver)

    def begin(params: Any, cond: jax.Array | None, z: jax.Array) -> State:
        return span(params, cond).begin(z)

    noise = jax.ShapeDtypeStruct((work.batch, grid.tokens, flow.token_channels), jnp.float32)
    state = jax.eval_shape(begin, params, text, noise)
    _, _, kind = solver.plan(grid.tokens, 0, grid.frame)[-1]
    stored = located(layout, params)
    made: Params = located(layout, jax.eval_shape(functools.partial(ready, definition), params), in_use=True)
    beside = () if config.sample.parameters == "stored" or made == stored else (stored,)

    def advance(
        params: Params, cond: jax.Array | None, state: State, first: jax.Array, *_: Params
    ) -> tuple[State, Any]:
        return span(params, cond).advance(state, first, kind.size, kind=kind)

    if layout is not None:
        state = _spread(state, layout, cache_cuts(layout, flow.blocks[index].kv_heads, flow.cache))
        text = None if text is None else jax.ShapeDtypeStruct(text.shape, text.dtype, sharding=layout.whole())
    function = jax.jit(advance, donate_argnums=2, keep_unused=bool(beside))
    return Program(function, (made if beside else stored, text, state, _scalar(layout), *beside))


def _spread(state: State, layout: Layout, cuts: tuple[Cut, ...]) -> State:
    """Shards the cache by `cuts` and replicates the rest of the state."""

    def place(leaf: jax.ShapeDtypeStruct, cuts: tuple[Any, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.sharding(leaf.shape, cuts))

    cache = jax.tree.map(lambda leaf: place(leaf, cuts), state.cache)
    return dataclasses.replace(jax.tree.map(lambda leaf: place(leaf, ()), state), cache=cache)


def _scalar(layout: Layout | None) -> jax.ShapeDtypeStruct:
    sharding = None if layout is None else layout.whole()
    return jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding)
