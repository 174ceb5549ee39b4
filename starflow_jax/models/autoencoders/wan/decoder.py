"""The decoder of Wan video autoencoders, which maps latents to pixels."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.models.autoencoders.wan.config import WanConfig
from starflow_jax.models.autoencoders.wan.layers import (
    CausalConv,
    ChannelNorm,
    Middle,
    Past,
    ResidualBlock,
    in_turn,
    pasts,
)
from starflow_jax.models.autoencoders.wan.resampling import Doubling, channels_to_squares, duplicated
from starflow_jax.nn.linear import Compute, Linear


class UpLevel(nnx.Module):
    """Residual blocks, then upsampling by 2 (not in the last level), with a shortcut where `config.residual`."""

    def __init__(self, config: WanConfig, level: int, key: PRNGKeyArray, compute: Compute):
        inputs, outputs = config.decoder_widths[level], config.decoder_widths[level + 1]
        is_last = level == len(config.temporal)
        if not config.residual and level > 0:
            inputs //= 2  # the plain decoder halves its channels where it doubles the size
        count = config.blocks + 1
        keys = jax.random.split(key, count + 1)
        self.blocks = nnx.List(
            [ResidualBlock(outputs if i else inputs, outputs, keys[i], compute) for i in range(count)]
        )
        temporal = not is_last and config.temporal[::-1][level]
        enlarged = outputs if config.residual else outputs // 2
        self.resample = None if is_last else Doubling(outputs, enlarged, temporal, keys[-1], compute)
        self.box = (2 if temporal else 1, 2) if config.residual and not is_last else None
        self.outputs = outputs

    def __call__(
        self, x: Float[Array, "B t rows columns C"], past: Past
    ) -> tuple[Float[Array, "B T H W outputs"], Past]:
        """[B, T, H, W, inputs] to [B, T', H', W', ...]."""
        shortcut = 0 if self.box is None else duplicated(x, self.outputs, *self.box, beginning=past is None)
        x, new_past = in_turn(self.blocks, self.resample, x, past)
        return x + shortcut, new_past


class Decoder(nnx.Module):
    """Maps latents [B, T, H, W, c] to pixels."""

    def __init__(self, config: WanConfig, key: PRNGKeyArray, compute: Compute):
        levels = len(config.multipliers)
        keys = jax.random.split(key, levels + 4)
        inner, colours = config.decoder_widths[0], config.pixel_channels * config.patch**2
        self.mix_in = Linear(config.channels, config.channels, keys[-1], name="mix_in", compute=compute)
        self.conv_in = CausalConv(config.channels, inner, keys[0], compute)
        self.middle = Middle(inner, keys[-3], compute)
        self.levels = nnx.List([UpLevel(config, i, keys[i + 1], compute) for i in range(levels)])
        self.norm_out = ChannelNorm(config.decoder_widths[-1])
        self.conv_out = CausalConv(config.decoder_widths[-1], colours, keys[-2], compute)
        self.patch = config.patch

    def __call__(
        self, x: Float[Array, "B t rows columns C"], past: Past
    ) -> tuple[Float[Array, "B T H W outputs"], Past]:
        """Pixels [B, T', H stride, W stride, C], and the next cache."""
        first, middle, *before, last = pasts(past, len(self.levels) + 3)
        x, first = self.conv_in(self.mix_in(x), first)
        x, middle = self.middle(x, middle)
        new_past = []
        for level, level_past in zip(self.levels, before, strict=True):
            x, level_past = level(x, level_past)
            new_past.append(level_past)
        x, last = self.conv_out(jax.nn.silu(self.norm_out(x)), last)
        return channels_to_squares(x, self.patch), (first, middle, *new_past, last)
