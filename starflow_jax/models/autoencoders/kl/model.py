"""The convolutional autoencoder of latent diffusion, the "VAE" of SD and SDXL (`AutoencoderKL` in diffusers).

`Encoder` and `quant_conv` give the posterior N(mean, exp(logvar)) of an image x; a flow reads `(mean - shift_factor)
scaling_factor`, and the decoder inverts both.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.core.choices import Dtype
from starflow_jax.core.config.checks import check, check_choices, check_integer, check_real
from starflow_jax.models.autoencoders.kl.layers import Decoder, Encoder, Sizes
from starflow_jax.models.autoencoders.protocol import AnyArray, Params
from starflow_jax.nn.convolution import conv
from starflow_jax.nn.module_parameters import drawn, merge, split

# Bounds of the log-variance, as in the released code of latent diffusion.
_LOGVAR = (-30.0, 20.0)


class Posterior(NamedTuple):
    """A normal distribution of raw latents, not shifted or scaled; mean, logvar: float32 [..., h, w, channels]."""

    mean: jax.Array
    logvar: jax.Array

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*B rows columns c"]:
        """Samples latents."""
        return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape)

    def kl(self) -> Float[Array, "*B"]:
        """KL divergence from N(0, 1) in nats, float32 [...], summed over positions and channels."""
        terms = 0.5 * (self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar)
        return jnp.sum(terms, axis=(-3, -2, -1))


class _Module(nnx.Module):
    """All parameters, with the names of the files."""

    def __init__(self, config: AutoencoderKL, rngs: nnx.Rngs):
        c = config
        sizes = Sizes(c.block_out_channels, c.layers_per_block, c.norm_num_groups, c.mid_block_add_attention, c.dtype)
        self.encoder = Encoder(c.pixel_channels, c.latent_channels, sizes, rngs)
        self.decoder = Decoder(c.pixel_channels, c.latent_channels, sizes, rngs)
        moments = 2 * c.latent_channels
        self.quant_conv = conv(moments, moments, 1, rngs, c.dtype) if c.use_quant_conv else None
        self.post_quant_conv = (
            conv(c.latent_channels, c.latent_channels, 1, rngs, c.dtype) if c.use_post_quant_conv else None
        )


@dataclasses.dataclass(frozen=True)
class AutoencoderKL:
    """An `Autoencoder`; its parameters are nested like their names ("decoder", "up_blocks", "0", ...).

    Attributes (named as in `config.json`):
      block_out_channels: widths, finest resolution first; each further one halves rows and columns.
      layers_per_block: residual blocks of the encoder at each resolution; the decoder has one more.
      latent_channels, pixel_channels: channels of latents and of images (`in_channels`, `out_channels`).
      norm_num_groups: groups of group norms; divides every width.
      scaling_factor, shift_factor: latents are shifted by -shift_factor, then multiplied by scaling_factor.
      use_quant_conv, use_post_quant_conv: whether there are 1x1 convolutions of the moments and of the latents.
      mid_block_add_attention: whether there is attention at the coarsest resolution.
      dtype: of convolutions and matrix products, "float32" or "bfloat16"; norms, softmax and results are float32.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: int = 2
    latent_channels: int = 4
    pixel_channels: int = 3
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    dtype: Dtype = "float32"

    def __post_init__(self):
        check(len(self.block_out_channels) > 0, "block_out_channels must name at least one width, got none")
        for width in self.block_out_channels:
            check_integer("block_out_channels", width, minimum=1)
        for name in ("layers_per_block", "latent_channels", "pixel_channels", "norm_num_groups"):
            check_integer(name, getattr(self, name), minimum=1)
        uneven = [width for width in self.block_out_channels if width % self.norm_num_groups]
        check(not uneven, f"norm_num_groups={self.norm_num_groups} must divide block_out_channels, got {uneven}")
        check_real("scaling_factor", self.scaling_factor)
        check(self.scaling_factor > 0, f"scaling_factor must be above 0, got {self.scaling_factor}")
        check_real("shift_factor", self.shift_factor)
        check_choices(self)

    @property
    def stride(self) -> int:
        """2 to the number of halvings."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def frame_stride(self) -> int:
        """1: frames are independent."""
        return 1

    @property
    def channels(self) -> int:
        """`latent_channels`."""
        return self.latent_channels

    def init(self, key: PRNGKeyArray) -> Params:
        """Samples initial parameters."""
        return drawn(self.abstract()[1], key)

    def abstract(self) -> tuple[nnx.GraphDef, Params]:
        """The definition of the module, and ShapeDtypeStructs in place of its parameters."""
        return _abstract(self)

    def posterior(self, params: Params, pixels: Float[AnyArray, "*B H W C"]) -> Posterior:
        """The distribution of the raw latents of pixels in [-1, 1]."""
        front = pixels.shape[:-3]
        module = merge(self.abstract()[0], params)
        moments = module.encoder(jnp.asarray(pixels).reshape(-1, *pixels.shape[-3:]).astype(self.dtype))
        if module.quant_conv is not None:
            moments = module.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        shape = (*front, *mean.shape[1:])
        return Posterior(mean.reshape(shape), jnp.clip(logvar, *_LOGVAR).reshape(shape))

    def decode_raw(self, params: Params, latents: Float[AnyArray, "*B rows columns c"]) -> Float[Array, "*B H W C"]:
        """Decodes raw latents to float32 pixels; `params` need not contain the encoder."""
        return self.to_pixels(params, self.features(params, latents))

    def features(self, params: Params, latents: Float[AnyArray, "*B rows columns c"]) -> Float[Array, "*B H W D"]:
        """The part of `decode_raw` before the last convolution of the decoder, [..., H, W, width]."""
        front = latents.shape[:-3]
        module = merge(self.abstract()[0], params)
        h = jnp.asarray(latents).reshape(-1, *latents.shape[-3:]).astype(self.dtype)
        if module.post_quant_conv is not None:
            h = module.post_quant_conv(h)
        h = module.decoder.features(h)
        return h.reshape(*front, *h.shape[1:])

    def to_pixels(self, params: Params, features: Float[Array, "*B H W D"]) -> Float[Array, "*B H W C"]:
        """The last convolution of `decode_raw`: features to pixels."""
        front = features.shape[:-3]
        module = merge(self.abstract()[0], params)
        pixels = module.decoder.conv_out(features.reshape(-1, *features.shape[-3:])).astype(jnp.float32)
        return pixels.reshape(*front, *pixels.shape[1:])

    def scaled(self, latents: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Raw latents to scaled latents, as a flow reads them."""
        return (latents - self.shift_factor) * self.scaling_factor

    def raw(self, latents: Float[AnyArray, "*shape"]) -> Float[Array, "*shape"]:
        """The inverse of `scaled`."""
        return jnp.asarray(latents) / self.scaling_factor + self.shift_factor

    def encode(self, params: Params, pixels: Float[AnyArray, "*B H W C"]) -> Float[Array, "*B rows columns c"]:
        """Pixels in [-1, 1] to the scaled mean of the posterior, float32 [..., H / stride, W / stride, c]."""
        return self.scaled(self.posterior(params, pixels).mean)

    def encode_sample(
        self, params: Params, pixels: Float[AnyArray, "*B H W C"], key: PRNGKeyArray
    ) -> Float[Array, "*B rows columns c"]:
        """Like `encode`, with a sample of the posterior in place of its mean."""
        return self.scaled(self.posterior(params, pixels).sample(key))

    def decode(self, params: Params, latents: Float[AnyArray, "*B rows columns c"]) -> Float[Array, "*B H W C"]:
        """Scaled latents to pixels."""
        return self.decode_raw(params, self.raw(latents))


@functools.cache  # every trace needs it, and it takes a second of Python
def _abstract(config: AutoencoderKL) -> tuple[nnx.GraphDef, Params]:
    return split(_Module(config, nnx.Rngs(0)))
