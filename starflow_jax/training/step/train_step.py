"""One training step as pure functions: losses and gradients, the update, several updates in one program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.flows import Flow
from starflow_jax.flows.denoise import NOISE_SCALE, noise_level_weight
from starflow_jax.flows.likelihood import objective
from starflow_jax.flows.parameters import abstract, merge, split
from starflow_jax.sharding.layout import Layout, placed
from starflow_jax.training.step.accumulation import summed_over_parts
from starflow_jax.training.step.frozen_autoencoder import Frozen
from starflow_jax.training.step.frozen_text import FrozenText
from starflow_jax.training.step.inputs import batch_condition, noisy_pixels
from starflow_jax.training.step.learning_rate_schedule import LearningRateSchedule
from starflow_jax.training.step.noise_levels import Levels, draw_levels
from starflow_jax.training.step.optimizer import (
    DENOISER,
    Params,
    UpdateReport,
    apply_updates,
    gradient_point,
    init_optimizer,
    keep_unless,
    update_ema,
)
from starflow_jax.training.step.warp import random_warp

PRIOR_RATE = 0.1

Batch = Mapping[str, Any]  # arrays, of the loader or of JAX
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """The complete state of a run, except that of the loader.

    Attributes:
      step: int32 [], number of updates made, skipped ones included.
      params: nested dictionary of the flow's parameters; opt_state: moments by group.
      ema: exponential moving average of params, None if it is off.
      key: uint32 key data; the noise of update n is sampled with this key folded with n.
    """

    step: jax.Array
    params: Params
    opt_state: dict[str, Any]
    ema: Params | None
    key: jax.Array


@flax.struct.dataclass
class Losses:
    """Scalars float32 [] of one batch.

    Attributes:
      loss: the weighted objective with the latent norm, which the flow minimises.
      loss_z, loss_logdet: its two terms, unweighted.
      loss_denoiser: mean square error of the denoiser, None without a denoiser.
      latent_square: mean z² over the batch, [N, c], for the prior variance; None in a flow without one.
    """

    loss: jax.Array
    loss_z: jax.Array
    loss_logdet: jax.Array
    loss_denoiser: jax.Array | None = None
    latent_square: jax.Array | None = None


def init_state(config: ExperimentConfig, layout: Layout | None = None) -> TrainState:
    """The state before the first update, initialised from `config.seed`.

    On one device each kind of block is a program, which compiles faster than one program of all. With a layout one
    program initialises the shards of every device; the values are those of a single device.
    """
    if layout is None:
        return _init_state(config)
    shardings = layout.tree(jax.eval_shape(lambda: _init_state(config)))
    return jax.jit(_init_state, static_argnums=0, out_shardings=shardings)(config)


def _init_state(config: ExperimentConfig) -> TrainState:
    flow_key = jax.random.split(jax.random.key(config.seed))[0]
    return state_of(config, split(Flow(config.flow, flow_key))[1])


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def state_of(config: ExperimentConfig, params: Params) -> TrainState:
    """The state before the first update from these parameters, whose buffers are donated."""
    key = jax.random.split(jax.random.key(config.seed))[1]
    ema = jax.tree.map(jnp.copy, params) if config.train.ema else None
    moments = init_optimizer(config.train, params)
    return TrainState(jnp.zeros((), jnp.int32), params, moments, ema, jax.random.key_data(key))


def loss_and_gradients(
    definition: Any,
    params: Params,
    x: jax.Array,
    cond: jax.Array | None = None,
    *,
    weights: jax.Array | float | None = None,
    latent_norm: float = 0.0,
    noise_std: jax.Array | float = 0.0,
    dropout_key: jax.Array | None = None,
    levels: Levels | None = None,
    lengths: jax.Array | None = None,
) -> tuple[Losses, Params, jax.Array]:
    """Losses, and gradients with respect to the parameters and to x, from one backward pass.

    A learned denoiser is trained on a by-product of that pass: its target is `sigma_n * dL/dx` with L the weighted
    objective summed over samples and dimensions (specification, section 6).

    Args:
      definition, params: of `flows.parameters.split`.
      x: noisy data float32 [B, H, W, C] or [B, T, H, W, C]; cond: labels, text states or None.
      weights: of samples, [B] or a scalar; None for 1.
      latent_norm: weight of the mean square of the tokens.
      noise_std: sigma_n of the noise in x, scalar or [B]; used by the denoiser only.
      dropout_key: enables dropout.
      levels: of a noise-conditioned flow, in place of `weights` and `noise_std`. Its denoiser learns t^2 / 0.3 times
        the gradient of an example's negative log-likelihood, whatever the weight of its loss.
      lengths: numbers of tokens [B] of vectors with padding.

    Returns:
      Losses, gradients with the structure of `params` (zero for statistics), and d loss / d x with the shape of x.
    """

    level = None
    if levels is not None:
        weights, noise_std, level = levels.weight, levels.level, levels.level

    def flow_loss(params: Params, x: jax.Array) -> tuple[jax.Array, Losses]:
        output = merge(definition, params).forward(x, cond, dropout_key=dropout_key, noise_level=level, lengths=lengths)
        terms = objective(output, weights=weights, latent_norm=latent_norm)
        latent_square = None
        if "prior_variance" in params:
            z = output.tokens[-1].astype(jnp.float32)
            latent_square = jnp.mean(z**2, axis=0).reshape(params["prior_variance"].shape)
        return terms.loss, Losses(terms.loss, terms.loss_z, terms.loss_logdet, None, latent_square)

    (_, losses), (grads, x_grad) = jax.value_and_grad(flow_loss, argnums=(0, 1), has_aux=True)(params, x)
    if DENOISER not in params:
        return losses, grads, x_grad

    if levels is not None:
        noise_std = levels.level * (levels.level / NOISE_SCALE) / levels.weight
    sigma = jnp.reshape(jnp.asarray(noise_std, jnp.float32), (-1,) + (1,) * (x.ndim - 1))
    target = jax.lax.stop_gradient(sigma * x.size * x_grad)

    def denoiser_loss(denoiser: Params) -> jax.Array:
        flow = merge(definition, {**params, DENOISER: denoiser})
        assert flow.denoiser is not None  # params contain its parameters
        return jnp.mean((flow.denoiser(x, cond, level).astype(jnp.float32) - target) ** 2)

    loss_denoiser, denoiser_grads = jax.value_and_grad(denoiser_loss)(params[DENOISER])
    return losses.replace(loss_denoiser=loss_denoiser), {**grads, DENOISER: denoiser_grads}, x_grad


def accumulated(
    function: Callable[..., tuple[Losses, Params, jax.Array]],
    params: Params,
    x: jax.Array,
    cond: jax.Array | None,
    *,
    parts: int,
    dropout_key: jax.Array | None = None,
    layout: Layout | None = None,
    levels: Levels | None = None,
    lengths: jax.Array | None = None,
) -> tuple[Losses, Params]:
    """Gradient accumulation: losses and gradients of a batch as means over equal parts of it.

    Noise and conditions are sampled before, so that the number of parts changes the memory but not the result (except
    for dropout masks, which are sampled for each part).

    Args:
      function: of params, a part of x, cond, levels and lengths, and a dropout key; returns the same as
        `loss_and_gradients`.
      x: [B, ...]; cond: [B, ...] or None; levels: of a noise-conditioned flow; lengths: [B] or None.
      parts: number of parts, a divisor of B.
    """
    if parts == 1:
        x = placed(layout, x, "batch")
        cond = None if cond is None else placed(layout, cond, "batch")
        losses, grads, _ = function(params, x, cond, dropout_key=dropout_key, levels=levels, lengths=lengths)
        return losses, grads

    def on_part(part: Any, index: jax.Array) -> tuple[Losses, Params]:
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        x, cond, levels, lengths = part
        losses, grads, _ = function(params, x, cond, dropout_key=key, levels=levels, lengths=lengths)
        share: tuple[Losses, Params] = jax.tree.map(lambda value: value / parts, (losses, grads))
        return share

    return summed_over_parts(on_part, (x, cond, levels, lengths), parts=parts, layout=layout)


def train_step(
    config: ExperimentConfig,
    definition: Any,
    levels: int,
    state: TrainState,
    batch: Batch,
    layout: Layout | None = None,
    encoder: Frozen | None = None,
    text: FrozenText | None = None,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      config, definition, levels, layout: static; `levels` is the number of values a pixel can take.
      state: before the update.
      batch: `image` integers [B, H, W, C] or [B, T, H, W, C], `label` int32 [B]; `text` int32 [B, L] with captions;
        `length` int32 [B] of vectors with padding.
      encoder: frozen autoencoder that encodes the images; text: frozen text encoder, None for vocabulary words.

    Returns:
      The state after the update, and float32 scalars: loss, loss_z, loss_logdet, grad_norm, skipped (0 or 1), and with
      a denoiser loss_denoiser, denoiser_grad_norm, denoiser_skipped. Losses of a skipped update may be NaN.
    """
    train = config.train
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    noise_key, label_key, dropout_key = jax.random.split(key, 3)
    image = batch["image"]
    if config.data.warp > 0:
        # fold_in, not split: the other keys are the same with and without warping.
        image = random_warp(jax.random.fold_in(key, 3), image, levels, config.data.warp, config.data.warp_strength)
    if encoder is not None:
        image, levels = encoder.latents(image, levels, layout), 0
    noise = None
    if config.flow.noise_levels is not None:
        span, choices = config.flow.noise_levels, (train.level_distribution, train.level_weight)
        noise = draw_levels(jax.random.fold_in(key, 4), image.shape[0], span, *choices)
    x = noisy_pixels(noise_key, image, levels, config.data, None if noise is None else noise.level)
    cond = batch_condition(label_key, batch, config, text, layout)
    losses, grads = accumulated(
        functools.partial(
            loss_and_gradients,
            definition,
            weights=noise_level_weight(config.data.noise_std) if train.noise_weight else None,
            latent_norm=train.latent_norm,
            noise_std=config.data.noise_std,
        ),
        gradient_point(train, state.params, state.opt_state),
        x,
        cond,
        parts=train.accumulate,
        dropout_key=dropout_key if config.flow.dropout > 0 else None,
        layout=layout,
        levels=noise,
        lengths=batch.get("length"),
    )
    finite = jnp.isfinite(losses.loss)
    lr = learning_rate(config)(state.step)
    params, opt_state, report = apply_updates(
        train, state.params, state.opt_state, grads, step=state.step, lr=lr, allow=finite
    )
    if losses.latent_square is not None and config.flow.scale == "unit":
        variance = update_prior_variance(params["prior_variance"], losses.latent_square)
        params["prior_variance"] = keep_unless(finite, variance, params["prior_variance"])
    ema = state.ema
    if ema is not None:
        ema = keep_unless(finite, update_ema(ema, params, decay=train.ema, step=state.step), ema)
    return TrainState(state.step + 1, params, opt_state, ema, state.key), _metrics(losses, report)


def _metrics(losses: Losses, report: UpdateReport) -> Metrics:
    """The metrics of one update, as `train_step` returns them."""
    metrics = {
        "loss": losses.loss,
        "loss_z": losses.loss_z,
        "loss_logdet": losses.loss_logdet,
        "grad_norm": report.grad_norm,
        "skipped": 1.0 - report.applied.astype(jnp.float32),
    }
    if losses.loss_denoiser is not None:
        assert report.denoiser_grad_norm is not None and report.denoiser_applied is not None
        metrics["loss_denoiser"] = losses.loss_denoiser
        metrics["denoiser_grad_norm"] = report.denoiser_grad_norm
        metrics["denoiser_skipped"] = 1.0 - report.denoiser_applied.astype(jnp.float32)
    return metrics


def update_prior_variance(variance: jax.Array, latent_square: jax.Array) -> jax.Array:
    """TARFlow's running mean of z² with rate 0.1 (specification, section 2); both arrays are [N, c]."""
    return variance + PRIOR_RATE * (latent_square - variance)


def learning_rate(config: ExperimentConfig) -> LearningRateSchedule:
    """The learning rate schedule of the flow."""
    train = config.train
    return LearningRateSchedule(
        train.steps, train.warmup, train.lr, train.min_lr, train.schedule, train.decay, train.decay_updates
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 5), donate_argnums=2)
def train_steps(
    config: ExperimentConfig,
    levels: int,
    state: TrainState,
    batches: Batch,
    count: jax.Array | int,
    layout: Layout | None = None,
    encoder: Frozen | None = None,
    text: FrozenText | None = None,
) -> tuple[TrainState, Metrics]:
    """Several updates in one call of a compiled program, so that a small model does not wait for Python.

    The program is the same for every `count`, so a run can stop and resume at any step.

    Args:
      config, levels: static; `levels` is the number of values a pixel can take.
      state: before the updates; its buffers are donated.
      batches: as for `train_step`, stacked along a new first axis.
      count: number of batches to use.
      layout: static; of the devices that state and batches are sharded over, None for one device.
      encoder, text: as for `train_step`, on the same devices.

    Returns:
      The state after the updates, and the metrics of `train_step` as arrays over the batches, NaN beyond `count`.
    """
    definition = abstract(config.flow, layout)[0]

    # One jitted function, so that the loop reuses the trace that gives the names of the metrics.
    @functools.partial(jax.jit, inline=True)
    def step(
        state: TrainState, batch: Batch, encoder: Frozen | None, text: FrozenText | None
    ) -> tuple[TrainState, Metrics]:
        return train_step(config, definition, levels, state, batch, layout, encoder, text)

    def body(index: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, metrics = carry
        state, new = step(state, jax.tree.map(lambda stacked: stacked[index], batches), encoder, text)
        return state, {name: metrics[name].at[index].set(value) for name, value in new.items()}

    capacity = len(batches["image"])
    batch = jax.tree.map(lambda stacked: jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype), batches)
    names = jax.eval_shape(step, state, batch, encoder, text)[1]
    empty = {name: jnp.full((capacity,), jnp.nan, jnp.float32) for name in names}
    state, metrics = jax.lax.fori_loop(0, count, body, (state, empty))
    if layout is not None:  # keeps the shardings, so that the next call runs the same program
        state = jax.lax.with_sharding_constraint(state, layout.tree(state))
        metrics = jax.lax.with_sharding_constraint(metrics, layout.whole())
    return state, metrics
