"""The causal video autoencoders of Wan2.1 and Wan2.2 (Wan team, 2025, arXiv:2503.20314, section 4.1).

A latent frame depends on no later pixels, so that a video can be processed in chunks: `encode_chunk` and `decode_chunk`
take the cache of the previous chunk (the past) and return that of the next; `streaming` runs them over incoming frames.
The first latent frame encodes one frame of pixels, each later one `frame_stride`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.core.choices import Dtype
from starflow_jax.core.config.checks import check, check_choices, check_real
from starflow_jax.models.autoencoders.protocol import AnyArray, Params
from starflow_jax.models.autoencoders.wan.config import WanConfig
from starflow_jax.models.autoencoders.wan.decoder import Decoder
from starflow_jax.models.autoencoders.wan.encoder import Encoder
from starflow_jax.models.autoencoders.wan.layers import Past
from starflow_jax.nn.linear import Compute
from starflow_jax.nn.module_parameters import merge, split


class WanNetworks(nnx.Module):
    """Encoder and decoder, which define the tree of parameters."""

    def __init__(self, config: WanConfig, key: PRNGKeyArray, compute: Compute):
        first, second = jax.random.split(key)
        self.encoder = Encoder(config, first, compute)
        self.decoder = Decoder(config, second, compute)


@dataclasses.dataclass(frozen=True)
class WanAutoencoder:
    """An `Autoencoder` of pixels in [-1, 1] and normalised latents.

    Attributes:
      config: the sizes, and the statistics for normalising latents.
      temporal_scale: factor of the normalised latents of frames after the first (0.6 in STARFlow-V).
      dtype: of convolutions and matrix products, "float32" or "bfloat16"; norms, attention weights, pixels and latents
        are float32.
    """

    config: WanConfig
    temporal_scale: float = 1.0
    dtype: Dtype = "float32"

    def __post_init__(self):
        check_real("temporal_scale", self.temporal_scale)
        check(self.temporal_scale > 0, f"temporal_scale must be above 0, got {self.temporal_scale}")
        check_choices(self)

    @property
    def stride(self) -> int:
        """Pixels along a side of a latent position."""
        return self.config.stride

    @property
    def frame_stride(self) -> int:
        """Frames of pixels in a latent frame after the first."""
        return self.config.frame_stride

    @property
    def channels(self) -> int:
        """Channels of latents."""
        return self.config.channels

    @property
    def pixel_channels(self) -> int:
        """Channels of images."""
        return self.config.pixel_channels

    def init(self, key: PRNGKeyArray) -> Params:
        """Samples initial float32 parameters: kernels normal with variance 1 / inputs, gains one, biases zero."""
        return jax.jit(lambda key: split(WanNetworks(self.config, key, Compute(self.dtype)))[1])(key)

    def abstract(self) -> tuple[nnx.GraphDef, Params]:
        """The definition of the networks, and ShapeDtypeStructs in place of their parameters."""
        return _abstract(self.config, self.dtype)

    def encode(self, params: Params, pixels: Float[AnyArray, "*B H W C"]) -> Float[Array, "*b rows columns c"]:
        """Encodes pixels to the normalised means of latents.

        Args:
          params: nested parameters.
          pixels: float32 in [-1, 1], clips [B, T, H, W, C] with T = 1 + frame_stride k, or images [B, H, W, C].

        Returns:
          float32 [B, 1 + k, H / stride, W / stride, channels], or [B, ...] of images.

        Raises:
          ValueError: an invalid shape.
        """
        clips = pixels[:, None] if pixels.ndim == 4 else pixels
        latents = self.encode_chunk(params, clips)[0]
        return latents[:, 0] if pixels.ndim == 4 else latents

    def decode(self, params: Params, latents: Float[AnyArray, "*B rows columns c"]) -> Float[Array, "*b H W C"]:
        """Decodes latents [B, t, h, w, c] or [B, h, w, c] to pixels, which may slightly exceed [-1, 1]."""
        clips = latents[:, None] if latents.ndim == 4 else latents
        pixels = self.decode_chunk(params, clips)[0]
        return pixels[:, 0] if latents.ndim == 4 else pixels

    def encode_chunk(
        self, params: Params, pixels: Float[AnyArray, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B t rows columns c"], Past]:
        """Encodes the next frames of a video.

        Args:
          params: nested parameters.
          pixels: float32 [B, T, H, W, C]; at the beginning T = 1 + frame_stride (n - 1), later T = frame_stride n.
          past: cache of the previous chunk; None at the beginning.

        Returns:
          Latents float32 [B, n, h, w, c] as of `encode`, and the cache for the next chunk.

        Raises:
          ValueError: an invalid shape.
        """
        _check_pixels(self, pixels.shape, beginning=past is None)
        mean, _, new_past = _moments(self, params, pixels, past)
        shift, spread = _scales(self, mean.shape[1], past)
        return (mean - shift) / spread, new_past

    def decode_chunk(
        self, params: Params, latents: Float[AnyArray, "B t rows columns c"], past: Past = None
    ) -> tuple[Float[Array, "B T H W C"], Past]:
        """Decodes the next latents [B, n, h, w, c] of a video; shapes are those of `encode_chunk`."""
        shape = latents.shape
        check(
            len(shape) == 5 and shape[1] > 0 and shape[-1] == self.channels,
            f"latents must be [B, t, h, w, {self.channels}] with t > 0, got shape {list(shape)}",
        )
        shift, spread = _scales(self, shape[1], past)
        return _decoded(self, params, latents * spread + shift, past)

    def moments(
        self, params: Params, pixels: Float[AnyArray, "B T H W C"]
    ) -> tuple[Float[Array, "B t rows columns c"], Float[Array, "B t rows columns c"]]:
        """The posterior of clips: mean and log variance, not normalised or scaled."""
        _check_pixels(self, pixels.shape, beginning=True)
        return _moments(self, params, pixels, None)[:2]


@functools.cache  # every trace needs it, and it takes half a second of Python
def _abstract(config: WanConfig, dtype: str) -> tuple[nnx.GraphDef, Params]:
    definitions = []

    def build(key: PRNGKeyArray) -> dict[str, Any]:
        definition, params = split(WanNetworks(config, key, Compute(dtype)))
        definitions.append(definition)
        return params

    params = jax.eval_shape(build, jax.random.key(0))
    return definitions[0], params


def _scales(autoencoder: WanAutoencoder, frames: int, past: Past) -> tuple[np.ndarray, np.ndarray]:
    """The shift [c] and the divisor [frames, 1, 1, c] of raw latents of a chunk."""
    config = autoencoder.config
    later = np.full((frames, 1), 1.0 / autoencoder.temporal_scale)
    if past is None:
        later[0] = 1.0
    spread = later * np.asarray(config.latents_std)
    return np.asarray(config.latents_mean, np.float32), spread.astype(np.float32)[:, None, None]


# Jitted, so that calls outside of a program compile one program for each shape and not one for each operation.
@functools.partial(jax.jit, static_argnums=0)
def _moments(
    autoencoder: WanAutoencoder, params: Params, pixels: jax.Array, past: Past
) -> tuple[jax.Array, jax.Array, Past]:
    moments, new_past = merge(autoencoder.abstract()[0], params).encoder(pixels, past)
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, log_variance, new_past


@functools.partial(jax.jit, static_argnums=0)
def _decoded(autoencoder: WanAutoencoder, params: Params, latents: jax.Array, past: Past) -> tuple[jax.Array, Past]:
    pixels, new_past = merge(autoencoder.abstract()[0], params).decoder(latents, past)
    return pixels.astype(jnp.float32), new_past


def _check_pixels(autoencoder: WanAutoencoder, shape: tuple[int, ...], *, beginning: bool) -> None:
    side, step, channels = autoencoder.stride, autoencoder.frame_stride, autoencoder.pixel_channels
    check(
        len(shape) == 5 and shape[-1] == channels and shape[2] % side == 0 and shape[3] % side == 0,
        f"pixels must be [B, T, H, W, {channels}] with sides that are multiples of {side}, got shape {list(shape)}",
    )
    first = 1 if beginning else 0
    check(
        shape[1] > 0 and (shape[1] - first) % step == 0,
        f"frames of pixels must be {'1 plus ' if beginning else ''}a multiple of {step}, got {shape[1]}",
    )
