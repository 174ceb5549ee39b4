"""Encodes and decodes videos of any length chunk by chunk, in the memory of a few frames.

Two programs are compiled, one for the first chunk and one for all later ones. A short last chunk is padded with copies
of its last frame, which do not affect earlier frames by causality, and the padding is removed from the result.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.models.autoencoders.protocol import AnyArray, Params
from starflow_jax.models.autoencoders.wan.layers import Past


@runtime_checkable
class CausalAutoencoder(Protocol):
    """A hashable autoencoder that processes chunks: `WanAutoencoder`, `TiledWan`."""

    @property
    def frame_stride(self) -> int:
        """Frames of pixels in a latent frame after the first."""
        ...

    def encode_chunk(
        self, params: Params, pixels: Float[AnyArray, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B t rows columns c"], Past]:
        """See `WanAutoencoder.encode_chunk`."""
        ...

    def decode_chunk(
        self, params: Params, latents: Float[AnyArray, "B t rows columns c"], past: Past = None
    ) -> tuple[Float[Array, "B T H W C"], Past]:
        """See `WanAutoencoder.decode_chunk`."""
        ...


def decode_stream(
    autoencoder: CausalAutoencoder,
    params: Params,
    latents: Iterable[Float[AnyArray, "B rows columns c"]],
    *,
    chunk: int = 1,
) -> Iterator[Float[Array, "B n H W C"]]:
    """Decodes incoming latent frames, such as the `denoised` frames of `sampling.streaming.stream.stream`.

    Args:
      autoencoder: the autoencoder; params: nested parameters, preferably on the device.
      latents: frames float32 [B, h, w, c], in order.
      chunk: number of latent frames that are decoded at once.

    Yields:
      Pixels float32 [B, n, H, W, C] of each chunk, n = 1 + frame_stride (chunk - 1) for the first chunk and
      frame_stride chunk for later ones, fewer for the last. Concatenated they equal `decode` of all latents.

    Raises:
      ValueError: a frame has an invalid shape.
    """
    check_integer("chunk", chunk, minimum=1)
    params = jax.device_put(params)
    past, step = None, autoencoder.frame_stride
    for frames, count in _groups(latents, chunk, chunk, "latents"):
        beginning = past is None
        output, past = (
            decode_first(autoencoder, params, frames)
            if past is None
            else decode_next(autoencoder, params, frames, past)
        )
        count_out = 1 + step * (count - 1) if beginning else step * count
        yield output if count_out == output.shape[1] else output[:, :count_out]


def encode_stream(
    autoencoder: CausalAutoencoder,
    params: Params,
    pixels: Iterable[Float[AnyArray, "B H W C"]],
    *,
    chunk: int = 1,
) -> Iterator[Float[Array, "B n rows columns c"]]:
    """Encodes incoming frames of pixels.

    Args:
      autoencoder: the autoencoder; params: nested parameters, preferably on the device.
      pixels: frames float32 [B, H, W, C] in [-1, 1], in order; 1 + frame_stride k in all.
      chunk: number of latent frames that are encoded at once.

    Yields:
      Latents float32 [B, chunk, h, w, c], fewer for the last chunk. Concatenated they equal `encode` of all pixels.

    Raises:
      ValueError: a frame has an invalid shape, or the number of frames is not 1 plus a multiple of frame_stride.
    """
    check_integer("chunk", chunk, minimum=1)
    params = jax.device_put(params)
    past, step, total = None, autoencoder.frame_stride, 0
    for frames, count in _groups(pixels, 1 + step * (chunk - 1), step * chunk, "pixels"):
        total += count
        check((total - 1) % step == 0, f"frames of pixels must be 1 plus a multiple of {step}, got {total}")
        count_out = 1 + (count - 1) // step if past is None else count // step
        output, past = (
            encode_first(autoencoder, params, frames)
            if past is None
            else encode_next(autoencoder, params, frames, past)
        )
        yield output if count_out == output.shape[1] else output[:, :count_out]


def _groups(
    frames: Iterable[np.ndarray | jax.Array], first: int, later: int, name: str
) -> Iterator[tuple[jax.Array, int]]:
    """Stacks frames [B, ...] to [B, n, ...], n = `first`, then `later`; yields also the number without padding."""
    pending: list[np.ndarray | jax.Array] = []
    size, shape = first, None
    for frame in frames:
        shape = frame.shape if shape is None else shape
        check(
            frame.ndim == 4 and frame.shape == shape,
            f"{name} must be frames of one shape [B, rows, columns, channels], got {list(frame.shape)}",
        )
        pending.append(frame)
        if len(pending) == size:
            yield _stacked(pending), size
            pending, size = [], later
    if pending:
        yield _stacked(pending + [pending[-1]] * (size - len(pending))), len(pending)


def _stacked(frames: list[np.ndarray | jax.Array]) -> jax.Array:
    if all(isinstance(frame, np.ndarray) for frame in frames):
        return jnp.asarray(np.stack(frames, axis=1), jnp.float32)
    return jnp.stack(frames, axis=1).astype(jnp.float32)


# The cache of a chunk is donated to the next call, which reuses its memory.
@functools.partial(jax.jit, static_argnums=0)
def decode_first(
    autoencoder: CausalAutoencoder, params: Params, latents: Float[Array, "B t rows columns c"]
) -> tuple[Float[Array, "B T H W C"], Past]:
    """`decode_chunk` of the first chunk, compiled."""
    return autoencoder.decode_chunk(params, latents)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def decode_next(
    autoencoder: CausalAutoencoder, params: Params, latents: Float[Array, "B t rows columns c"], past: Past
) -> tuple[Float[Array, "B T H W C"], Past]:
    """`decode_chunk` of a later chunk, compiled; donates `past`."""
    return autoencoder.decode_chunk(params, latents, past)


@functools.partial(jax.jit, static_argnums=0)
def encode_first(
    autoencoder: CausalAutoencoder, params: Params, pixels: Float[Array, "B T H W C"]
) -> tuple[Float[Array, "B t rows columns c"], Past]:
    """`encode_chunk` of the first chunk, compiled."""
    return autoencoder.encode_chunk(params, pixels)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def encode_next(
    autoencoder: CausalAutoencoder, params: Params, pixels: Float[Array, "B T H W C"], past: Past
) -> tuple[Float[Array, "B t rows columns c"], Past]:
    """`encode_chunk` of a later chunk, compiled; donates `past`."""
    return autoencoder.encode_chunk(params, pixels, past)
