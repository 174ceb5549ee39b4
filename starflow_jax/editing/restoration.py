"""Restores images and clips from a measurement, with a run's model as the prior: `restore`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from starflow_jax.api.distributions import distribution
from starflow_jax.api.flow_distribution import Distribution
from starflow_jax.api.model_condition import Condition, given_condition
from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.editing.chain_request import chain_request
from starflow_jax.editing.flow_prior import FlowPrior
from starflow_jax.editing.operators import Mask, OfDecoded, Operator, as_operator, check_operator, noise_gain
from starflow_jax.editing.posterior import Posterior
from starflow_jax.editing.posterior_sampling import (
    HARD_SIGMA,
    MOVES_OF_NOISE,
    ChainOptions,
    PosteriorDraws,
    joined,
    sample_posterior,
)
from starflow_jax.editing.resuming import chain_folder
from starflow_jax.flows.order import is_frame_causal
from starflow_jax.flows.parameters import abstract, merge
from starflow_jax.sampling.denoising import DENOISE_FIELDS, Denoising, resolved_denoising
from starflow_jax.sampling.image_sampling import to_pixels
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sharding.layout import gathered, spread

# Chains that one program moves at once.
ROWS = 256
# The standard deviation of a measurement of latents, whose decoder cannot be inverted, where none is given.
LATENT_SIGMA = 0.1
_GIVEN_STREAM, _DENOISE_STREAM, _CLASS_STREAM = 0x6769, 0x6465, 0x636C


@dataclasses.dataclass(frozen=True, eq=False)
class Restored:
    """Restored images or clips.

    Attributes:
      pixels: uint8 [M, C, (T,) H, W, channels], the last draw of every chain, without training noise; what an exact
        mask shows of pixels is unchanged.
      clean: float32 [M, C, *size], the same in the units of the flow.
      draws: all draws, before denoising, and the report on the chains.
      sigma: the standard deviation of the measurement that the chains used, the noise in the data included; 0 for
        values that are exact.
      labels: int32 [M, C], the class of every chain with `cond` "any": their shares estimate p(class | y). Else None.
    """

    pixels: np.ndarray
    clean: np.ndarray
    draws: PosteriorDraws
    sigma: float
    labels: np.ndarray | None = None


def restore(
    run: Run,
    y: np.ndarray | jax.Array,
    operator: Operator | Callable[[jax.Array], jax.Array],
    *,
    sigma: float | None = None,
    cond: Condition | Literal["any"] | None = None,
    options: ChainOptions | None = None,
    seed: int = 0,
    noise_level: float | None = None,
    frames: int | None = None,
    rows: int = ROWS,
    progress: Callable[[int], None] | None = None,
    checkpoint: Path | str | None = None,
) -> Restored:
    """Draws images or clips from p(x | y), in proportion to p(x) N(y; A x, sigma^2), by Markov chains.

    Args:
      run: the trained model, on pixels or latents.
      y: float [M, ...], measurements of M images or clips whose pixels are in [-1, 1], as `operator` gives them. Of a
        mask, hidden values have no effect.
      operator: A, on pixels: a `Mask` or another operator, or a linear function of data [B, (T,) H, W, C].
      sigma: the standard deviation of the noise in y. What a model learned is data with training noise, and this noise,
        as A shows it, is added to it. None for the smallest: 0, which keeps what a mask shows of pixels exactly; of
        other operators, the noise in the data, and at least 0.1 of latents. Moves of noise ("latent",
        "latent-hamiltonian", "both") change all of x: with them an exact mask is a measurement with the noise in the
        data, or 0.05 where there is none, and what it shows is set in `Restored.pixels` and `Restored.clean`.
      cond: of the M images: class labels, -1 for none; captions; or text states; "any" of a model with classes, whose
        chains then have the classes in turn, and those survive whose class fits. None for no condition.
      options: of the chains; None for the default.
      seed: of all draws.
      noise_level: of a noise-conditioned model, and of the training noise that data then have; None for the highest.
      frames: of clips, as the flow counts them; None for as many as it was trained on.
      rows: chains that one program moves at once, at least those of one image; the draws depend on it. Draws are also
        denoised so many at a time.
      progress: called with a number of moves whenever all chains have made some.
      checkpoint: folder that keeps the chains while they run (`editing.resuming`): they are written after some of their
        moves, but no more often than every 15 seconds. The same call continues them, and gives the draws that it would
        have given uninterrupted, to the bit on the same devices. None keeps nothing.

    Raises:
      ValueError: an argument that does not fit the model, or `checkpoint` holds chains of another call, damaged ones or
        other files, or cannot be written.
      ChainsStopped: Ctrl-C or SIGTERM with `checkpoint`, a KeyboardInterrupt; the chains are kept.
    """
    options = options or ChainOptions()
    check_integer("seed", seed, minimum=0)
    check_integer("rows", rows, minimum=1)
    seed, rows = int(seed), int(rows)
    data = run.config.data
    check(not data.traits.vectors, "run must be of images or clips, got one of vectors")
    model = distribution(run, frames=frames, noise_level=noise_level)
    level = data.noise_std if noise_level is None else float(noise_level)
    on_pixels = as_operator(operator)
    measured, operator = _measured(run, on_pixels, model, y)
    labels = None
    if isinstance(cond, str):
        labels = _any_class(run, cond, (len(measured), options.chains), seed)
        conditions = given_condition(run, labels.reshape(-1), labels.size)
    else:
        conditions = given_condition(run, cond, len(measured))
        conditions = None if conditions is None else np.repeat(conditions, options.chains, axis=0)
    learned = data_noise(data, level)
    exact, noise = _resolved_sigma(learned, operator, sigma, model.shape)
    values = None
    if exact and options.moves in MOVES_OF_NOISE:
        noise = learned or noise
    elif exact:
        values = _as_learned(data, level, measured, seed)
    free = leading = None
    num_leading = 0
    if values is not None and isinstance(operator, Mask):
        shown = np.broadcast_to(operator.visible, model.shape)
        num_leading, free = leading_frames(run.config, shown), jnp.asarray(~shown)
        if num_leading:
            frame = jnp.arange(len(shown)).reshape(-1, *(1,) * (shown.ndim - 1))
            leading = frame < num_leading
    together = max(1, min(rows // options.chains, len(measured)))
    key, parts = jax.random.key(seed), []
    with contextlib.ExitStack() as stack:
        folder = None
        if checkpoint is not None:
            others = {"sigma": sigma, "seed": seed, "noise_level": noise_level, "frames": frames, "rows": rows}
            others["leading_frames"] = num_leading or None
            request = chain_request(run, model, measured, on_pixels, cond, options, **others)
            folder = stack.enter_context(chain_folder(checkpoint, request, -(-len(measured) // together)))
        for number, first in enumerate(range(0, len(measured), together)):
            index = np.resize(np.arange(first, min(first + together, len(measured))), together)
            chosen = (options.chains * index[:, None] + np.arange(options.chains)).reshape(-1)
            of_rows = None if conditions is None else jnp.asarray(conditions[chosen])
            y_of_rows = jnp.asarray(measured[index] if values is None else values[index])
            sigmas = jnp.full(together, noise, jnp.float32)
            # All but the parameters, which stay divided over the devices as they are.
            of_rows, *fields = spread(model.layout, (of_rows, operator, y_of_rows, sigmas, free, leading))
            part = sample_posterior(
                Posterior(FlowPrior(model, of_rows), *fields),
                jax.random.fold_in(key, first),
                model.shape,
                options,
                exact=None if values is None else values[index],
                progress=progress,
                kept=None if folder is None else folder.chains(number),
            )
            parts.append(part.first(min(together, len(measured) - first)))
    draws = joined(parts)
    own = (options.chains * np.arange(len(measured))[:, None] + draws.origin).reshape(-1)
    conditions = None if conditions is None else conditions[own]
    clean = _denoised(run, model, level, draws.last, conditions, jax.random.fold_in(key, _DENOISE_STREAM), rows)
    pixels = to_pixels(clean.reshape(-1, *clean.shape[2:]), data, run.autoencoder)
    pixels = pixels.reshape(*clean.shape[:2], *pixels.shape[1:])
    if exact and isinstance(operator, Mask):
        visible = np.broadcast_to(operator.visible, model.shape)
        pixels = np.where(visible, to_pixels(measured, data, None)[:, None], pixels)
        clean = np.where(visible, measured[:, None], clean)
    labels = None if labels is None else labels.reshape(-1)[own].reshape(labels.shape)
    return Restored(pixels, clean, draws, noise if values is None else 0.0, labels)


def _any_class(run: Run, cond: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    """The class of every chain, int32 [M, C], each about equally often among the chains of an image."""
    classes = run.config.num_classes
    check(cond == "any" and classes > 0, f"cond must be labels, captions or None for this model, got {cond!r}")
    offsets = np.random.default_rng((seed, _CLASS_STREAM)).random((shape[0], 1))
    found: np.ndarray = (classes * (np.arange(shape[1]) + offsets) / shape[1]).astype(np.int32) % classes
    return found


def _measured(
    run: Run, operator: Operator, model: Distribution, y: np.ndarray | jax.Array
) -> tuple[np.ndarray, Operator]:
    """The measurements, float32 [M, ...], as the operator on data of the flow gives them, and this operator.

    Raises:
      ValueError: an operator or measurements that do not fit the model.
    """
    autoencoder = run.autoencoder
    size = model.shape if autoencoder is None else autoencoder.pixel_shape(model.shape)
    if isinstance(operator, Mask):
        visible = np.asarray(operator.visible)
        try:
            fits = visible.dtype == bool and np.broadcast_shapes(visible.shape, size) == size
        except ValueError:
            fits = False
        check(fits, f"visible must be bool and broadcast to {list(size)}, got {visible.dtype} {list(visible.shape)}")
    expected = check_operator(operator, size)
    y = np.asarray(y)
    check(
        y.dtype.kind == "f" and y.shape[1:] == expected and len(y) > 0,
        f"y must be floating point [M, {', '.join(map(str, expected))}], got {y.dtype} {list(y.shape)}",
    )
    y = y.astype(np.float32)
    if isinstance(operator, Mask):
        y = np.where(operator.visible, y, np.float32(0.0))
    check(bool(np.isfinite(y).all()), "y must be finite, got values that are not")
    if autoencoder is None:
        return y, operator
    return y, OfDecoded(operator, autoencoder.params, autoencoder.autoencoder)


def _resolved_sigma(
    learned: float, operator: Operator, sigma: float | None, size: tuple[int, ...]
) -> tuple[bool, float]:
    """Whether the measurement is exact, and the standard deviation that chains reach; `learned`: of training noise."""
    of_pixels = not isinstance(operator, OfDecoded)
    if sigma is not None:
        check_real("sigma", sigma, minimum=0.0, maximum=1e3)
    if of_pixels and isinstance(operator, Mask) and not sigma:
        return True, HARD_SIGMA
    if not of_pixels:
        check(sigma is None or sigma > 0, f"sigma must be above 0 for a model of latents, got {sigma}")
        return False, LATENT_SIGMA if sigma is None else float(sigma)
    total = float(np.hypot(learned * noise_gain(operator, size), sigma or 0.0))
    check(total > 0, "sigma must be above 0 for a model that was trained without noise, got 0")
    return False, total


def leading_frames(config: ExperimentConfig, shown: Bool[np.ndarray, "*size"]) -> int:
    """How many of the first frames of a clip are shown whole; 0 where their noise depends on later frames.

    Args:
      config: of the model; of one on images, the result is 0.
      shown: the values of a clip that are known.
    """
    if not config.data.frames or not is_frame_causal(config.flow):
        return 0
    return int(np.logical_and.accumulate(shown.reshape(len(shown), -1).all(axis=1)).sum())


def data_noise(data: DataConfig, level: float) -> float:
    """The standard deviation of the noise in pixels as the model knows them; `level`: of Gaussian noise."""
    if data.noise == "uniform":
        return 2.0 / data.pixel_levels / 12.0**0.5
    return level if data.noise == "gaussian" else 0.0


def _as_learned(data: DataConfig, level: float, values: np.ndarray, seed: int) -> np.ndarray:
    """Exact pixels with the training noise: of a Gaussian as drawn from the seed, of a uniform one its middle."""
    if data.noise != "gaussian":
        return values
    noise = np.random.default_rng((seed, _GIVEN_STREAM)).standard_normal(values.shape, np.float32)
    return values + np.float32(level) * noise


def _denoised(
    run: Run,
    model: Distribution,
    level: float,
    x: Float[np.ndarray, "M C *size"],
    cond: np.ndarray | None,
    key: PRNGKeyArray,
    rows: int,
) -> np.ndarray:
    """The draws without training noise, by the method of the run's configuration."""
    denoising, levels = resolved_denoising(run.config, dict.fromkeys(DENOISE_FIELDS))
    if denoising.method == "none":
        return x
    flat = x.reshape(-1, *x.shape[2:])
    found = []
    for first in range(0, len(flat), rows):
        index = np.resize(np.arange(first, min(first + rows, len(flat))), min(rows, len(flat)))
        given = (flat[index], None if cond is None else cond[index], np.int32(levels), jax.random.fold_in(key, first))
        clean = _remove_noise(denoising, level, model, *spread(model.layout, given))
        found.append(np.asarray(clean)[: len(flat) - first])
    return np.concatenate(found).reshape(x.shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _remove_noise(
    denoising: Denoising,
    noise_std: float,
    model: Distribution,
    x: Float[Array, "B *size"],
    cond: Shaped[Array, "B *rest"] | None,
    levels: jax.Array,
    key: PRNGKeyArray,
) -> Float[Array, "B *size"]:
    flow = merge(abstract(denoising.flow_config(model.config), model.layout)[0], model.params)

    def noise(level: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, level), x.shape)

    clean: jax.Array = denoising.apply(flow, x, cond, noise_std, levels, noise)
    return gathered(model.layout, clean)
