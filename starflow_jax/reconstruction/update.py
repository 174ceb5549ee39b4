"""One update of an autoencoder, or of a decoder alone, and of its discriminator."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from starflow_jax.core.config.autoencoder_config import AutoencoderExperiment, ReconstructionConfig
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.reconstruction.discriminator import PatchDiscriminator, adaptive_weight, hinge
from starflow_jax.reconstruction.lpips import lpips
from starflow_jax.sharding.layout import Layout, gathered, placed
from starflow_jax.training.step.optimizer import keep_unless, update_ema
from starflow_jax.training.step.train_step import TrainState

AUTOENCODER, DISCRIMINATOR = "autoencoder", "discriminator"
DECODER = ("decoder", "post_quant_conv")  # the modules that fine-tuning trains
METRICS = (
    "loss",
    "square_error",
    "lpips",
    "kl",
    "adversarial",
    "adaptive_weight",
    "discriminator",
    "grad_norm",
    "skipped",
)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The static part of the training: the experiment, the autoencoder, and the discriminator if there is one."""

    experiment: AutoencoderExperiment
    autoencoder: AutoencoderKL

    @property
    def discriminator(self) -> PatchDiscriminator | None:
        """None if the experiment has no adversarial loss."""
        loss = self.experiment.loss
        if not loss.adversarial:
            return None
        return PatchDiscriminator(self.autoencoder.pixel_channels, loss.discriminator_width, loss.discriminator_layers)

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder is trained too."""
        return self.experiment.network is not None


def init_state(objective: Objective, params: Params) -> tuple[TrainState, Params]:
    """The state before the first update, and the frozen parameters."""
    frozen = {} if objective.trains_encoder else {name: value for name, value in params.items() if name not in DECODER}
    trained: dict[str, Any] = {AUTOENCODER: {name: value for name, value in params.items() if name not in frozen}}
    key, init_key = jax.random.split(jax.random.key(objective.experiment.seed))
    if objective.discriminator is not None:
        trained[DISCRIMINATOR] = objective.discriminator.init(init_key)
    trained = jax.tree.map(jnp.asarray, trained)
    ema = {AUTOENCODER: jax.tree.map(jnp.copy, trained[AUTOENCODER])} if objective.experiment.train.ema else None
    opt_state = {name: _adam(objective.experiment.train).init(group) for name, group in trained.items()}
    return TrainState(jnp.zeros((), jnp.int32), trained, opt_state, ema, jax.random.key_data(key)), frozen


@functools.partial(jax.jit, static_argnums=(0, 1, 6), donate_argnums=2)
def update(
    objective: Objective,
    levels: int,
    state: TrainState,
    frozen: Params,
    perceptual: Params | None,
    pixels: jax.Array,
    layout: Layout | None = None,
) -> tuple[TrainState, Mapping[str, jax.Array]]:
    """The state after one more update, and scalars float32 with the names of `METRICS`.

    An update whose loss or gradients are not finite changes only the step.

    Args:
      levels: number of values a pixel can take.
      frozen: parameters of the encoder if only the decoder is trained.
      perceptual: weights of LPIPS, None if the loss has no perceptual term.
      pixels: integers [B, H, W, C]; layout: of several devices.
    """
    x = placed(layout, pixels, "batch").astype(jnp.float32) * (2.0 / (levels - 1)) - 1.0
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    params, frozen, perceptual = gathered(layout, (state.params, frozen, perceptual))
    gradients, terms = losses_and_gradients(objective, params, frozen, perceptual, x, key, state.step)
    new, norm, finite = _applied(objective.experiment.train, state, gradients, terms["loss"])
    return new, gathered(layout, terms | {"grad_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32)})


def losses_and_gradients(
    objective: Objective,
    params: Mapping[str, Params],
    frozen: Params,
    perceptual: Params | None,
    x: jax.Array,
    key: jax.Array,
    step: jax.Array | int,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Gradients with the structure of `params` (autoencoder and discriminator), and the losses, scalars.

    The gradient is that of the loss with the adaptive weight held constant. It is composed by hand, so that one pass
    through the network suffices although two gradients at its last layer are compared.

    Args:
      x: images float32 [B, H, W, C] in [-1, 1]; key: samples latents and their noise; step: number of updates made.
      The others are as for `update`.
    """
    loss, discriminator = objective.experiment.loss, objective.discriminator

    def features(trained: Params) -> tuple[jax.Array, jax.Array]:
        latents, kl = _latents(objective, {**frozen, **trained}, x, key)
        return objective.autoencoder.features({**frozen, **trained}, latents), kl

    def decoded(trained: Params, h: jax.Array) -> jax.Array:
        return objective.autoencoder.to_pixels({**frozen, **trained}, h)

    def reconstruction_loss(image: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        square = jnp.mean((image - x) ** 2)
        distance = jnp.zeros(()) if perceptual is None else jnp.mean(lpips(perceptual, image, x))
        return square + loss.perceptual * distance, {"square_error": square, "lpips": distance}

    trained = params[AUTOENCODER]
    (h, kl), to_network = jax.vjp(features, trained)
    image, to_last = jax.vjp(decoded, trained, h)
    (reconstruction, terms), image_grad = jax.value_and_grad(reconstruction_loss, has_aux=True)(image)
    gradients: dict[str, Any] = {}
    adversarial = weight = hinge_loss = jnp.zeros(())
    if discriminator is not None:
        critic, active = params[DISCRIMINATOR], jnp.where(step >= loss.discriminator_start, 1.0, 0.0)
        adversarial, critic_grad = jax.value_and_grad(lambda p: -jnp.mean(discriminator(critic, p)))(image)
        last = [to_last(part)[0]["decoder"]["conv_out"]["kernel"] for part in (image_grad, critic_grad)]
        weight = active * loss.adversarial * adaptive_weight(*last)
        image_grad = image_grad + weight * critic_grad
        hinge_loss, gradients[DISCRIMINATOR] = jax.value_and_grad(
            lambda p: active * hinge(discriminator(p, x), discriminator(p, image))
        )(critic)
    last_grads, h_grad = to_last(image_grad)
    (network_grads,) = to_network((h_grad, jnp.float32(loss.kl)))
    gradients[AUTOENCODER] = jax.tree.map(jnp.add, network_grads, last_grads)
    return gradients, terms | {
        "loss": reconstruction + loss.kl * kl + weight * adversarial,
        "kl": kl,
        "adversarial": adversarial,
        "adaptive_weight": weight,
        "discriminator": hinge_loss,
    }


def _latents(objective: Objective, params: Params, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Raw latents for the decoder, and the KL divergence of their posterior per element."""
    autoencoder, noise = objective.autoencoder, objective.experiment.loss.latent_noise
    sample_key, noise_key = jax.random.split(key)
    posterior = autoencoder.posterior(params, x)
    if objective.trains_encoder:
        latents, kl = posterior.sample(sample_key), jnp.mean(posterior.kl()) / posterior.mean[0].size
    else:
        latents, kl = jax.lax.stop_gradient(posterior.mean), jnp.zeros(())
    if noise:
        latents = autoencoder.raw(autoencoder.scaled(latents) + noise * jax.random.normal(noise_key, latents.shape))
    return latents, kl


def _applied(
    train: ReconstructionConfig, state: TrainState, gradients: Mapping[str, Any], loss: jax.Array
) -> tuple[TrainState, jax.Array, jax.Array]:
    """The state with the gradients applied, the norm of the autoencoder's, and whether all were finite."""
    norm = optax.tree.norm(gradients[AUTOENCODER])
    finite = jnp.isfinite(loss)
    for group in gradients.values():
        finite &= jnp.isfinite(optax.tree.norm(group))
    rates = {AUTOENCODER: learning_rate(train, state.step), DISCRIMINATOR: jnp.float32(train.discriminator_lr)}
    params, opt_state = {}, {}
    for name, group in state.params.items():
        updates, moments = _adam(train).update(gradients[name], state.opt_state[name], group)
        stepped = jax.tree.map(lambda value, change, by=rates[name]: value - by * change, group, updates)
        params[name], opt_state[name] = (
            keep_unless(finite, stepped, group),
            keep_unless(finite, moments, state.opt_state[name]),
        )
    ema = state.ema
    if ema is not None:
        part = {AUTOENCODER: params[AUTOENCODER]}
        ema = keep_unless(finite, update_ema(ema, part, decay=train.ema, step=state.step), ema)
    return TrainState(state.step + 1, params, opt_state, ema, state.key), norm, finite


def learning_rate(train: ReconstructionConfig, step: jax.Array | int) -> jax.Array:
    """The learning rate of update `step`, counted from 0: linear warm-up times cosine decay to 0."""
    warm = (jnp.asarray(step, jnp.float32) + 1.0) / max(train.warmup, 1)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.asarray(step, jnp.float32) / train.steps))
    return train.lr * jnp.minimum(warm, 1.0) * cosine


def _adam(train: ReconstructionConfig) -> optax.GradientTransformation:
    b1, b2 = train.betas
    clip = optax.clip_by_global_norm(train.grad_clip) if train.grad_clip else optax.identity()
    return optax.chain(clip, optax.scale_by_adam(b1=b1, b2=b2, eps=1e-8))
