"""One update of a learned inverse: pairs of noise and data with the flow's own states, the loss, the optimizer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.learned_inverse_config import LearnedInverseExperiment
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.flows.denoise import score_denoise
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.guidance import AnyGuidance, make_guidance
from starflow_jax.flows.learned_inverse import LearnedInverse
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.nn.module_parameters import split
from starflow_jax.sharding.layout import Layout, gathered, located, placed
from starflow_jax.solvers.inverse import inverse
from starflow_jax.solvers.sequential import Sequential
from starflow_jax.training.step.frozen_autoencoder import Frozen
from starflow_jax.training.step.frozen_text import FrozenText
from starflow_jax.training.step.inputs import batch_condition, noisy_pixels
from starflow_jax.training.step.optimizer import (
    apply_updates,
    gradient_point,
    init_optimizer,
    keep_unless,
    update_ema,
)
from starflow_jax.training.step.train_step import Batch, TrainState, learning_rate

METRICS = ("loss", "state_error", "deep_state_error", "clean_error", "grad_norm", "skipped")


@dataclasses.dataclass(frozen=True)
class Objective:
    """The static part of the training.

    Attributes:
      experiment: the training of the learned inverse.
      config: the run of the flow, with the batch size and the mesh of `experiment`.
      levels: number of values a pixel can take.
      layout: of the devices, None for one device.
    """

    experiment: LearnedInverseExperiment
    config: ExperimentConfig
    levels: int
    layout: Layout | None


class FrozenInputs(NamedTuple):
    """The arrays that the training reads and does not change.

    Attributes:
      flow: the parameters of the flow.
      encoder, text: frozen networks that the run applies to its data, None where it has none.
      null: text states float32 [1, L, text_dim] of the empty caption, which guidance leads away from; None without
        guidance or captions.
    """

    flow: Params
    encoder: Frozen | None
    text: FrozenText | None
    null: jax.Array | None


class Pairs(NamedTuple):
    """Noise and data of one batch with all states between them.

    Attributes:
      states: K + 1 arrays [B, ([T,] h, w), c], as `FlowOutput.tokens`.
      clean: [B, ([T,] h, w), c], data without the training noise.
    """

    states: tuple[jax.Array, ...]
    clean: jax.Array


def init_state(experiment: LearnedInverseExperiment, config: ExperimentConfig, layout: Layout | None) -> TrainState:
    """The state before the first update, initialised from `experiment.seed`."""
    shardings = None if layout is None else layout.tree(jax.eval_shape(lambda: _init_state(experiment, config)))
    return jax.jit(_init_state, static_argnums=(0, 1), out_shardings=shardings)(experiment, config)


def abstract_state(experiment: LearnedInverseExperiment, config: ExperimentConfig, layout: Layout | None) -> TrainState:
    """`init_state` as ShapeDtypeStructs, with shardings if there is a layout; allocates nothing."""
    return located(layout, jax.eval_shape(lambda: _init_state(experiment, config)))


def _init_state(experiment: LearnedInverseExperiment, config: ExperimentConfig) -> TrainState:
    key, init_key = jax.random.split(jax.random.key(experiment.seed))
    params = split(LearnedInverse(config.flow, experiment.network, init_key))[1]
    ema = jax.tree.map(jnp.copy, params) if experiment.train.ema else None
    moments = init_optimizer(experiment.train, params)
    return TrainState(jnp.zeros((), jnp.int32), params, moments, ema, jax.random.key_data(key))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def update(
    objective: Objective, sampled: bool, state: TrainState, frozen: FrozenInputs, batch: Batch
) -> tuple[TrainState, Mapping[str, jax.Array]]:
    """The state after one more update, and scalars float32 with the names of `METRICS`.

    An update whose loss or gradients are not finite changes only the step.

    Args:
      sampled: whether the flow draws the pairs for the conditions of the batch; else the pairs are the batch's data.
      batch: as for `train_step`.
    """
    experiment, config, layout = objective.experiment, objective.config, objective.layout
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    condition_key, weight_key, noise_key, mask_key = jax.random.split(key, 4)
    flow = merge(abstract(config.flow, layout)[0], frozen.flow)
    cond = batch_condition(condition_key, batch, config, frozen.text, layout)
    cond = None if cond is None else placed(layout, cond, "batch")
    weight = experiment.pairs.max_guidance * jax.random.uniform(weight_key)
    guidance = _guidance(objective, frozen, cond, weight)
    if sampled:
        pairs = _drawn(objective, flow, noise_key, _data_shape(objective, frozen, batch), cond, guidance)
    else:
        pairs = _encoded(objective, flow, frozen, noise_key, batch, cond, guidance)
    pairs = jax.lax.stop_gradient(pairs)
    free_running = jax.random.uniform(mask_key, batch["image"].shape[:1]) < experiment.pairs.free_running

    def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
        module = LearnedParams(params, experiment.network).module(config.flow, layout)
        return alignment_loss(module, pairs, cond, weight, free_running, experiment.pairs.clip)

    train = experiment.train
    point = gradient_point(train, state.params, state.opt_state)
    (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(point)
    rate = learning_rate(dataclasses.replace(config, train=train))(state.step)
    params, moments, report = apply_updates(
        train, state.params, state.opt_state, gradients, step=state.step, lr=rate, allow=jnp.isfinite(value)
    )
    ema = state.ema
    if ema is not None:
        ema = keep_unless(report.applied, update_ema(ema, params, decay=train.ema, step=state.step), ema)
    metrics = {"loss": value, **terms, "grad_norm": report.grad_norm}
    metrics["skipped"] = 1.0 - report.applied.astype(jnp.float32)
    new = TrainState(state.step + 1, params, moments, ema, state.key)
    if layout is not None:
        new = jax.lax.with_sharding_constraint(new, layout.tree(new))
    return new, gathered(layout, metrics)


def alignment_loss(
    learned: LearnedInverse,
    pairs: Pairs,
    cond: jax.Array | None,
    weight: float | Float[Array, ""],
    free_running: Bool[Array, "B"],
    clip: float,
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
    """The sum over blocks of the relative mean-square errors of the estimated states, and that of the clean data.

    A state is compared in units of the standard deviation of its channels over the batch, and clipped to `clip` of
    these units (hidden alignment, BiFlow, arXiv 2512.10953).

    Args:
      free_running: samples for which the network reads its own estimates in place of the flow's states.
    """
    estimates = learned(pairs.states[-1], cond, weight, teacher=pairs.states, free_running=free_running)
    errors = [
        _relative_error(estimate, state, clip)
        for estimate, state, step in zip(estimates.states, pairs.states[:-1], learned.steps, strict=False)
        if step is not None
    ]
    clean = _relative_error(estimates.clean, pairs.clean, clip)
    total = sum(errors, jnp.zeros(()))
    terms = {"state_error": total / max(len(errors), 1), "deep_state_error": errors[-1], "clean_error": clean}
    return total + clean, terms


def _relative_error(estimate: Float[Array, "B *grid c"], state: Float[Array, "B *grid c"], clip: float) -> jax.Array:
    axes = tuple(range(state.ndim - 1))
    mean, deviation = jnp.mean(state, axes), jnp.std(state, axes) + 1e-6
    target, value = (state - mean) / deviation, (estimate - mean) / deviation
    return jnp.mean((value - jnp.clip(target, -clip, clip)) ** 2)


def _guidance(
    objective: Objective, frozen: FrozenInputs, cond: jax.Array | None, weight: jax.Array
) -> AnyGuidance | None:
    """Guidance of the states, None where the experiment has none."""
    if not objective.experiment.pairs.max_guidance:
        return None
    config = objective.config
    annealed = config.sample.annealed_guidance
    return make_guidance(config.flow.family, cond, weight, null=frozen.null, annealed=annealed)


def _pixels(objective: Objective, frozen: FrozenInputs, image: jax.Array) -> tuple[jax.Array, int]:
    """The data of a batch, latents where the run encodes images, and the number of their levels (0: continuous)."""
    if frozen.encoder is None:
        return image, objective.levels
    return frozen.encoder.latents(image, objective.levels, objective.layout), 0


def _data_shape(objective: Objective, frozen: FrozenInputs, batch: Batch) -> tuple[int, ...]:
    return jax.eval_shape(lambda image: _pixels(objective, frozen, image)[0], batch["image"]).shape


def _encoded(
    objective: Objective,
    flow: Flow,
    frozen: FrozenInputs,
    key: PRNGKeyArray,
    batch: Batch,
    cond: jax.Array | None,
    guidance: AnyGuidance | None,
) -> Pairs:
    """Training data with their noise, and the states of the flow."""
    data = objective.config.data
    image, levels = _pixels(objective, frozen, batch["image"])
    x = placed(objective.layout, noisy_pixels(key, image, levels, data), "batch")
    states = flow.forward(x, cond, guidance=guidance).tokens
    # The data without noise: the mean of the noisy ones.
    clean = image.astype(jnp.float32)
    if levels:
        uniform = data.noise == "uniform"
        clean = dequantise(image, jnp.float32(0.5), levels) if uniform else clean * (2.0 / (levels - 1)) - 1.0
    return Pairs(states, flow.mapped_tokens(clean)[0])


def _drawn(
    objective: Objective,
    flow: Flow,
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    cond: jax.Array | None,
    guidance: AnyGuidance | None,
) -> Pairs:
    """Noise that the flow inverts, exactly; clean data by the flow's score.

    The sequential solver draws a batch: the iteration would take tens of evaluations of whole sequences.
    """
    z = placed(objective.layout, jax.random.normal(key, shape), "batch")
    result = inverse(flow, z, cond, solver=Sequential(), guidance=guidance)
    states = (*map(flow.tokens_of, reversed(result.states[1:])), flow.noise_tokens(z))
    data = objective.config.data
    if data.noise == "gaussian":
        clean = score_denoise(flow, result.x, cond, data.noise_std)
    else:  # the centre of the cell of a level
        level = jnp.floor((result.x + 1.0) * (objective.levels / 2.0)).clip(0, objective.levels - 1)
        clean = dequantise(level, jnp.float32(0.5), objective.levels)
    return Pairs(states, flow.mapped_tokens(clean)[0])
