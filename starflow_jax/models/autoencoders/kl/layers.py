"""Layers of the convolutional autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752).

Modules are named like the tensors in the layout of diffusers. Arrays are [B, H, W, C]; convolutions are computed in
`dtype`, norms in float32. Downsampling pads at the bottom and on the right only.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from starflow_jax.kernels.attention import Full, attention
from starflow_jax.nn.convolution import GroupNorm, conv, dense

_DOWN = ((0, 1), (0, 1))


class Sizes(NamedTuple):
    """The sizes that encoder and decoder share.

    Attributes:
      widths: channels at each resolution, finest first; layers: residual blocks of the encoder at each resolution.
      groups: groups of norms; attends: whether there is attention at the coarsest resolution; dtype: of convolutions.
    """

    widths: tuple[int, ...]
    layers: int
    groups: int
    attends: bool
    dtype: str


class Resnet(nnx.Module):
    """A residual block of two convolutions, each after a norm."""

    def __init__(self, inputs: int, outputs: int, groups: int, rngs: nnx.Rngs, dtype: str):
        self.norm1 = GroupNorm(inputs, groups, rngs)
        self.conv1 = conv(inputs, outputs, 3, rngs, dtype)
        self.norm2 = GroupNorm(outputs, groups, rngs)
        self.conv2 = conv(outputs, outputs, 3, rngs, dtype)
        self.conv_shortcut = conv(inputs, outputs, 1, rngs, dtype) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W outputs"]:
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class SelfAttention(nnx.Module):
    """A residual block of single-head self-attention over all positions of a frame, softmax in float32."""

    def __init__(self, channels: int, groups: int, rngs: nnx.Rngs, dtype: str):
        self.group_norm = GroupNorm(channels, groups, rngs)
        self.to_q, self.to_k, self.to_v, self.to_out = (dense(channels, channels, rngs, dtype) for _ in range(4))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        tokens = self.group_norm(x).reshape(batch * height * width, channels)  # flat: see nn.linear
        parts = (layer(tokens) for layer in (self.to_q, self.to_k, self.to_v))
        query, key, value = (part.reshape(batch, 1, height * width, channels) for part in parts)
        query = (query.astype(jnp.float32) * channels**-0.5).astype(query.dtype)
        mixed = attention(query, key, value, visibility=Full(), precision="highest")
        return x + self.to_out(mixed.reshape(batch * height * width, channels)).reshape(x.shape)


class MidBlock(nnx.Module):
    """The layers at the coarsest resolution."""

    def __init__(self, channels: int, groups: int, attends: bool, rngs: nnx.Rngs, dtype: str):
        self.resnets = nnx.List([Resnet(channels, channels, groups, rngs, dtype) for _ in range(2)])
        self.attentions = nnx.List([SelfAttention(channels, groups, rngs, dtype)] if attends else [])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = self.resnets[0](x)
        for layer in self.attentions:
            x = layer(x)
        return self.resnets[1](x)


class Downsampler(nnx.Module):
    """Downsamples by 2."""

    def __init__(self, channels: int, rngs: nnx.Rngs, dtype: str):
        self.conv = conv(channels, channels, 3, rngs, dtype, stride=2, padding=_DOWN)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B rows columns C"]:
        return self.conv(x)


class Upsampler(nnx.Module):
    """Upsamples by 2: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, rngs: nnx.Rngs, dtype: str):
        self.conv = conv(channels, channels, 3, rngs, dtype)

    def __call__(self, x: Float[Array, "B rows columns C"]) -> Float[Array, "B H W C"]:
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))


class DownBlock(nnx.Module):
    """Residual blocks at one resolution, then downsampling."""

    def __init__(self, inputs: int, outputs: int, layers: int, last: bool, groups: int, rngs: nnx.Rngs, dtype: str):
        widths = [inputs] + [outputs] * layers
        self.resnets = nnx.List([Resnet(widths[i], outputs, groups, rngs, dtype) for i in range(layers)])
        self.downsamplers = nnx.List([] if last else [Downsampler(outputs, rngs, dtype)])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B rows columns outputs"]:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nnx.Module):
    """Residual blocks at one resolution, then upsampling."""

    def __init__(self, inputs: int, outputs: int, layers: int, last: bool, groups: int, rngs: nnx.Rngs, dtype: str):
        widths = [inputs] + [outputs] * layers
        self.resnets = nnx.List([Resnet(widths[i], outputs, groups, rngs, dtype) for i in range(layers)])
        self.upsamplers = nnx.List([] if last else [Upsampler(outputs, rngs, dtype)])

    def __call__(self, x: Float[Array, "B rows columns C"]) -> Float[Array, "B H W outputs"]:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nnx.Module):
    """Maps pixels to the moments of the posterior, 2 `latents` channels, before `quant_conv`."""

    def __init__(self, pixels: int, latents: int, sizes: Sizes, rngs: nnx.Rngs):
        widths, layers, groups, attends, dtype = sizes
        self.conv_in = conv(pixels, widths[0], 3, rngs, dtype)
        inputs = [widths[0], *widths[:-1]]
        self.down_blocks = nnx.List(
            [
                DownBlock(inputs[i], width, layers, i == len(widths) - 1, groups, rngs, dtype)
                for i, width in enumerate(widths)
            ]
        )
        self.mid_block = MidBlock(widths[-1], groups, attends, rngs, dtype)
        self.conv_norm_out = GroupNorm(widths[-1], groups, rngs)
        self.conv_out = conv(widths[-1], 2 * latents, 3, rngs, dtype)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B rows columns moments"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Maps latents, after `post_quant_conv`, to pixels."""

    def __init__(self, pixels: int, latents: int, sizes: Sizes, rngs: nnx.Rngs):
        widths, layers, groups, attends, dtype = sizes
        widths = widths[::-1]
        self.conv_in = conv(latents, widths[0], 3, rngs, dtype)
        self.mid_block = MidBlock(widths[0], groups, attends, rngs, dtype)
        inputs = [widths[0], *widths[:-1]]
        self.up_blocks = nnx.List(
            [
                UpBlock(inputs[i], width, layers + 1, i == len(widths) - 1, groups, rngs, dtype)
                for i, width in enumerate(widths)
            ]
        )
        self.conv_norm_out = GroupNorm(widths[-1], groups, rngs)
        self.conv_out = conv(widths[-1], pixels, 3, rngs, dtype)

    def features(self, x: Float[Array, "B rows columns c"]) -> Float[Array, "B H W D"]:
        """The input of the last convolution, `conv_out`."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return nnx.silu(self.conv_norm_out(x))

    def __call__(self, x: Float[Array, "B rows columns c"]) -> Float[Array, "B H W C"]:
        return self.conv_out(self.features(x))
