"""Exact log-likelihoods of data under a trained model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.api.model_condition import Condition, given_condition
from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.evaluation.likelihood.image_likelihood import dequantised
from starflow_jax.flows import bits
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.parameters import split
from starflow_jax.sampling.image_requests import SampledImages
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.ranking import log_likelihoods
from starflow_jax.sampling.sample_likelihoods import sample_log_likelihoods
from starflow_jax.sampling.video_requests import SampledVideos
from starflow_jax.training.step.inputs import open_source


def log_prob(
    model: Run | Flow,
    x: SampledImages | SampledVideos | np.ndarray | jax.Array,
    cond: Condition | None = None,
    *,
    batch_size: int = 64,
    noise_level: float | None = None,
) -> np.ndarray | jax.Array:
    """The exact log-likelihood log p(x | cond) of every example, in nats.

    Args:
      model: a trained model, or a flow. `Flow.log_prob` is called for a flow, and may be traced.
      x: float [n, H, W, C] or [n, T, H, W, C] in the units of the flow: about [-1, 1], or latents. A model that was
        trained with Gaussian noise gives the density of noisy data. What `sample` returns is scored as the flow drew
        it, before denoising, with its own condition; the density of videos excludes given frames.
      cond: class labels [n], -1 for none; n captions; or text states [n, L, text_dim]. None for no condition.
      batch_size: examples scored at a time; not used for a flow.
      noise_level: of a noise-conditioned model, that of the noise in x; None for its highest one, which its samples
        have before denoising.

    Returns:
      float32 [n].

    Raises:
      ValueError: x or cond does not fit the model.
    """
    sampled = isinstance(x, SampledImages | SampledVideos)
    check(not sampled or cond is None, "cond must be None for samples, which hold their condition")
    check(not sampled or noise_level is None, "noise_level must be None for samples, which have the highest one")
    if isinstance(model, Flow):
        check(not sampled, "x must be an array where model is a flow, got samples")
        condition = None if cond is None else jnp.asarray(cond)
        return model.log_prob(jnp.asarray(x), condition, noise_level=noise_level)
    check_level(model.config.flow, noise_level)
    if isinstance(x, SampledImages | SampledVideos):
        return sample_log_likelihoods(model, x, batch_size=batch_size)
    x = np.asarray(x)
    check(x.dtype.kind == "f", f"x must be floating point (bits_per_dim takes integer images), got {x.dtype}")
    condition_of_x = given_condition(model, cond, len(x))
    return log_likelihoods(
        model.params, model.config.flow, x, condition_of_x, batch_size=batch_size, noise_level=noise_level
    )


def bits_per_dim(
    model: Run | Flow,
    images: np.ndarray | jax.Array,
    cond: Condition | None = None,
    *,
    levels: int | None = None,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    noise_level: float | None = None,
) -> np.ndarray:
    """Bits/dim of integer images: a bound on their code length, by uniform dequantisation.

    Args:
      model: a trained model on pixels, or a flow.
      images: integers [n, H, W, C], 0 to levels - 1.
      cond: as for `log_prob`.
      levels: the number of values of a pixel. None takes that of the data of a run, and 256 for a flow.
      draws: how often every image is dequantised; their log-likelihoods are averaged.
      seed: of the dequantisation noise.
      batch_size: images scored at a time.
      noise_level: that a noise-conditioned model reads; None for its lowest one.

    Returns:
      float64 [n]; lower is better.

    Raises:
      ValueError: images or cond that do not fit the model, or a model on latents.
    """
    images = np.asarray(images)
    check_integer("draws", draws, minimum=1)
    check(images.dtype.kind in "iu", f"images must be integers, got {images.dtype}")
    config = model.config.flow if isinstance(model, Run) else model.config
    if isinstance(model, Run):
        data = model.config.data
        check(not data.on_latents, "model must be of pixels, got one of latents, which have no integer levels")
        levels = _levels(model.config) if levels is None else levels
        params, cond = model.params, given_condition(model, cond, len(images))
    else:
        levels, params = 256 if levels is None else levels, split(model)[1]
    check_integer("levels", levels, minimum=2)
    lowest, highest = int(images.min()), int(images.max())
    wrong = lowest if lowest < 0 else highest
    check(lowest >= 0 and highest < levels, f"images must contain values from 0 to {levels - 1}, got {wrong}")
    check_level(config, noise_level)
    level = config.lowest_level if noise_level is None else noise_level
    indices, key = jnp.arange(len(images)), jax.random.key(seed)
    total = np.zeros(len(images))
    for draw in range(draws):
        x = np.asarray(dequantised(key, jnp.asarray(images), indices, draw, levels))
        cond_array = None if cond is None else np.asarray(cond)
        nats = log_likelihoods(params, config, x, cond_array, batch_size=batch_size, noise_level=level)
        total += np.asarray(nats, np.float64)
    return np.asarray(bits.bits_per_dim(total / draws, images[0].size, levels))


def check_level(config: FlowConfig, level: float | None) -> None:
    """Raises ValueError for a noise level outside of those of a flow, or for a flow without."""
    if level is None:
        return
    check(config.noise_levels is not None, f"noise_level must be None for a model without noise levels, got {level!r}")
    low, high = config.noise_levels  # type: ignore[misc]
    check_real("noise_level", level)
    check(low <= level <= high, f"noise_level must be from {low:g} to {high:g}, got {level:g}")


def _levels(config: ExperimentConfig) -> int:
    """The number of levels of a pixel: as a run recorded it, or, for a run of version 0.1, as its source has it."""
    if config.data.levels is not None:
        return config.data.levels
    return open_source(config.data, "test", flow=config.flow, text=config.text).levels
