"""Videos of any length in the memory of a few frames: chunk after chunk, each with what the one before left.

Two programs serve a whole video, one for its first chunk and one for all later ones; a short last chunk is filled up
with copies of its last frame, which the frames before cannot see, and cut afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.models.autoencoders.wan.layers import Past


class CausalAutoencoder(Protocol):
    """What can be streamed: `WanAutoencoder`, `TiledWan`. Hashable."""

    @property
    def frame_stride(self) -> int:
        """Frames of pixels in a latent frame after the first."""
        ...

    def encode_chunk(self, params: Params, pixels: jax.Array, past: Past = None) -> tuple[jax.Array, Past]:
        """See `WanAutoencoder.encode_chunk`."""
        ...

    def decode_chunk(self, params: Params, latents: jax.Array, past: Past = None) -> tuple[jax.Array, Past]:
        """See `WanAutoencoder.decode_chunk`."""
        ...


def decode_stream(
    autoencoder: CausalAutoencoder,
    params: Params,
    latents: Iterable[np.ndarray | jax.Array],
    *,
    chunk: int = 1,
) -> Iterator[jax.Array]:
    """Decodes latent frames as they come, e.g. the `denoised` frames of `sampling.streaming.stream.stream`.

    Args:
      params: nested, best on the device already.
      latents: frames float32 [B, h, w, c], in order.
      chunk: of how many latent frames pixels are made at once.

    Yields:
      Pixels float32 [B, n, H, W, C] as soon as their chunk is full, n = 1 + frame_stride (chunk - 1) of the first chunk
      and frame_stride chunk of later ones, fewer of the last. Together they are `decode` of all latents.

    Raises:
      ValueError: at the first frame that does not fit.
    """
    check_integer("chunk", chunk, minimum=1)
    params = jax.device_put(params)
    past, step = None, autoencoder.frame_stride
    for frames, count in _groups(latents, chunk, chunk, "latents"):
        beginning = past is None
        made, past = (
            decode_first(autoencoder, params, frames)
            if past is None
            else decode_next(autoencoder, params, frames, past)
        )
        kept = 1 + step * (count - 1) if beginning else step * count
        yield made if kept == made.shape[1] else made[:, :kept]


def encode_stream(
    autoencoder: CausalAutoencoder,
    params: Params,
    pixels: Iterable[np.ndarray | jax.Array],
    *,
    chunk: int = 1,
) -> Iterator[jax.Array]:
    """Encodes frames of pixels as they come.

    Args:
      params: nested, best on the device already.
      pixels: frames float32 [B, H, W, C] in [-1, 1], in order; 1 + frame_stride k in all.
      chunk: how many latent frames are made at once.

    Yields:
      Latents float32 [B, chunk, h, w, c], fewer of the last. Together they are `encode` of all pixels.

    Raises:
      ValueError: at the first frame that does not fit; at the end, if frames are left over that make no latent frame.
    """
    check_integer("chunk", chunk, minimum=1)
    params = jax.device_put(params)
    past, step, total = None, autoencoder.frame_stride, 0
    for frames, count in _groups(pixels, 1 + step * (chunk - 1), step * chunk, "pixels"):
        total += count
        check((total - 1) % step == 0, f"frames of pixels must be 1 plus a multiple of {step}, got {total}")
        kept = 1 + (count - 1) // step if past is None else count // step
        made, past = (
            encode_first(autoencoder, params, frames)
            if past is None
            else encode_next(autoencoder, params, frames, past)
        )
        yield made if kept == made.shape[1] else made[:, :kept]


def _groups(
    frames: Iterable[np.ndarray | jax.Array], first: int, later: int, name: str
) -> Iterator[tuple[jax.Array, int]]:
    """Frames [B, ...] in groups of `first`, then of `later`, stacked [B, n, ...], and how many are not filling."""
    held: list[np.ndarray | jax.Array] = []
    size, shape = first, None
    for frame in frames:
        shape = frame.shape if shape is None else shape
        check(
            frame.ndim == 4 and frame.shape == shape,
            f"{name} must be frames of one shape [B, rows, columns, channels], got {list(frame.shape)}",
        )
        held.append(frame)
        if len(held) == size:
            yield _stacked(held), size
            held, size = [], later
    if held:
        yield _stacked(held + [held[-1]] * (size - len(held))), len(held)


def _stacked(frames: list[np.ndarray | jax.Array]) -> jax.Array:
    if all(isinstance(frame, np.ndarray) for frame in frames):
        return jnp.asarray(np.stack(frames, axis=1), jnp.float32)
    return jnp.stack(frames, axis=1).astype(jnp.float32)


# The past of a chunk is used up by the next one: its memory is written over.
@functools.partial(jax.jit, static_argnums=0)
def decode_first(autoencoder: CausalAutoencoder, params: Params, latents: jax.Array) -> tuple[jax.Array, Past]:
    """The program of the first chunk of `decode_stream`: `decode_chunk` at the beginning."""
    return autoencoder.decode_chunk(params, latents)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def decode_next(
    autoencoder: CausalAutoencoder, params: Params, latents: jax.Array, past: Past
) -> tuple[jax.Array, Past]:
    """The program of every later chunk of `decode_stream`; uses the past up."""
    return autoencoder.decode_chunk(params, latents, past)


@functools.partial(jax.jit, static_argnums=0)
def encode_first(autoencoder: CausalAutoencoder, params: Params, pixels: jax.Array) -> tuple[jax.Array, Past]:
    """The program of the first chunk of `encode_stream`: `encode_chunk` at the beginning."""
    return autoencoder.encode_chunk(params, pixels)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def encode_next(
    autoencoder: CausalAutoencoder, params: Params, pixels: jax.Array, past: Past
) -> tuple[jax.Array, Past]:
    """The program of every later chunk of `encode_stream`; uses the past up."""
    return autoencoder.encode_chunk(params, pixels, past)
