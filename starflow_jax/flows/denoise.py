"""Removal of the training noise from samples, by the flow's score or by the learned denoiser.

Specification, section 6.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.noise_level import NoiseLevel
from starflow_jax.flows.order import AnyArray

# The learned denoiser predicts sigma_n * dL/dx of a loss that is weighted by sigma_n / NOISE_SCALE, so that its output
# times NOISE_SCALE is the step of Tweedie's formula. Weight and step must use the same constant.
NOISE_SCALE = 0.3

# Clean frames from the noisy frames of a chunk and the index of its first frame.
Denoise = Callable[[jax.Array, "int | jax.Array"], jax.Array]


def noise_level_weight(noise_std: NoiseLevel) -> NoiseLevel:
    """The loss weight sigma_n / 0.3 of noise-level conditioning."""
    return noise_std / NOISE_SCALE


def _like(x: Float[Array, "B *size"], level: NoiseLevel) -> Float[Array, "..."]:
    """A noise level, scalar or [B], reshaped to broadcast against x: [B, ...]."""
    level = jnp.asarray(level, jnp.float32)
    return level.reshape(-1, *(1,) * (x.ndim - 1)) if level.ndim else level


def score(
    flow: Flow,
    x: Float[Array, "B *size"],
    cond: Shaped[AnyArray, "B *rest"] | None = None,
    *,
    noise_level: NoiseLevel | None = None,
) -> Float[Array, "B *size"]:
    """grad_x log p(x), in the layout of x: one forward and one backward pass; noise_level: as in `Flow.forward`."""

    def total(x: Float[Array, "B *size"]) -> Float[Array, ""]:
        return jnp.sum(flow.log_prob(x, cond, noise_level=noise_level))

    gradient: jax.Array = jax.grad(total)(x.astype(jnp.float32))
    return gradient


def _condition_level(flow: Flow, noise_std: NoiseLevel) -> NoiseLevel | None:
    """The noise level that the network reads: that of the noise for a noise-conditioned flow, None for others."""
    return None if flow.config.noise_levels is None else noise_std


def score_denoise(
    flow: Flow, x: Float[Array, "B *size"], cond: Shaped[AnyArray, "B *rest"] | None, noise_std: NoiseLevel
) -> Float[Array, "B *size"]:
    """Tweedie's formula x + sigma_n^2 grad_x log p(x) (specification, section 6); noise_std: scalar or [B].

    A noise-conditioned flow reads noise_std as its noise level.
    """
    return x + _like(x, noise_std) ** 2 * score(flow, x, cond, noise_level=_condition_level(flow, noise_std))


def learned_denoise(
    flow: Flow,
    x: Float[Array, "B *size"],
    cond: Shaped[AnyArray, "B *rest"] | None,
    noise_std: NoiseLevel,
    next_std: NoiseLevel = 0.0,
) -> Float[Array, "B *size"]:
    """x - 0.3 D(x, text) (sigma_n - sigma_next) / sigma_n: from noise level sigma_n down to sigma_next.

    Levels are scalars or [B].

    Raises:
      ValueError: the flow has no learned denoiser.
    """
    if flow.denoiser is None:
        raise ValueError("denoiser is None: this flow has no learned denoiser; use score_denoise")
    current = _like(x, noise_std)
    fraction = (current - _like(x, next_std)) / current
    return x - NOISE_SCALE * fraction * flow.denoiser(x, cond, _condition_level(flow, noise_std))


def denoise_in_chunks(
    denoise: Denoise,
    video: Float[AnyArray, "B T H W C"],
    *,
    chunk: int | None,
    overlap: int | None = None,
    feed_denoised: bool = False,
) -> Float[Array, "B T H W C"]:
    """Denoises a video of any length in overlapping chunks, each as a separate video.

    Each chunk after the first starts `overlap` frames before the end of the previous one and replaces later frames.

    Args:
      denoise: maps [B, t, H, W, C], t <= chunk, and the index of the first frame to clean data of the same shape.
      video: [B, T, H, W, C].
      chunk: frames per chunk; None or at least T means the whole video at once.
      overlap: frames of context; None means chunk - 1.
      feed_denoised: use the denoised frames of the overlap as context, as the PyTorch original does, instead of the
        noisy ones.

    Raises:
      ValueError: the overlap is not below the chunk.
    """
    video, frames = video.astype(jnp.float32), video.shape[1]
    if chunk is None or chunk >= frames:
        return denoise(video, 0)
    check_integer("chunk", chunk, minimum=1)
    overlap = chunk - 1 if overlap is None else overlap
    check_integer("overlap", overlap, minimum=0)
    check(overlap < chunk, f"overlap must be below chunk={chunk}, got {overlap}")
    fresh = chunk - overlap
    full, rest = divmod(frames - chunk, fresh)

    def advance(out: Float[Array, "B T H W C"], start: int | Int[Array, ""], length: int) -> Float[Array, "B T H W C"]:
        source = out if feed_denoised else video
        piece = denoise(jax.lax.dynamic_slice_in_dim(source, start, length, axis=1), start)
        # The first chunk replaces all its frames, the others those after the overlap.
        before = jax.lax.dynamic_slice_in_dim(out, start, overlap, axis=1)
        context = jnp.where(start == 0, piece[:, :overlap], before)
        piece = jnp.concatenate([context, piece[:, overlap:]], axis=1)
        return jax.lax.dynamic_update_slice_in_dim(out, piece, start, axis=1)

    starts = fresh * jnp.arange(full + 1)
    out, _ = jax.lax.scan(lambda out, start: (advance(out, start, chunk), None), video, starts)
    return advance(out, fresh * (full + 1), overlap + rest) if rest else out
