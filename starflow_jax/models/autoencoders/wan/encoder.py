"""The encoder of Wan video autoencoders, which maps pixels to the moments of latents."""

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
from starflow_jax.models.autoencoders.wan.resampling import Halving, averaged, squares_to_channels
from starflow_jax.nn.linear import Compute, Linear


class DownLevel(nnx.Module):
    """Residual blocks, then downsampling by 2 (not in the last level), with a shortcut where `config.residual`."""

    def __init__(self, config: WanConfig, level: int, key: PRNGKeyArray, compute: Compute):
        inputs, outputs = config.encoder_widths[level], config.encoder_widths[level + 1]
        keys = jax.random.split(key, config.blocks + 1)
        self.blocks = nnx.List(
            [ResidualBlock(outputs if i else inputs, outputs, keys[i], compute) for i in range(config.blocks)]
        )
        is_last = level == len(config.temporal)
        temporal = not is_last and config.temporal[level]
        self.resample = None if is_last else Halving(outputs, temporal, keys[-1], compute)
        self.box = (2 if temporal else 1, 1 if is_last else 2) if config.residual else None
        self.outputs = outputs

    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past
    ) -> tuple[Float[Array, "B t rows columns outputs"], Past]:
        """[B, T, H, W, inputs] to [B, T', H', W', outputs]."""
        shortcut = 0 if self.box is None else averaged(x, self.outputs, *self.box, beginning=past is None)
        x, new_past = in_turn(self.blocks, self.resample, x, past)
        return x + shortcut, new_past


class Encoder(nnx.Module):
    """Maps pixels [B, T, H, W, C] to the mean and the log variance of latents."""

    def __init__(self, config: WanConfig, key: PRNGKeyArray, compute: Compute):
        levels = len(config.multipliers)
        keys = jax.random.split(key, levels + 4)
        inner = config.encoder_widths[-1]
        self.conv_in = CausalConv(config.pixel_channels * config.patch**2, config.width, keys[0], compute)
        self.levels = nnx.List([DownLevel(config, i, keys[i + 1], compute) for i in range(levels)])
        self.middle = Middle(inner, keys[-3], compute)
        self.norm_out = ChannelNorm(inner)
        self.conv_out = CausalConv(inner, 2 * config.channels, keys[-2], compute)
        self.mix_out = Linear(2 * config.channels, 2 * config.channels, keys[-1], name="mix_out", compute=compute)
        self.patch = config.patch

    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past
    ) -> tuple[Float[Array, "B t rows columns outputs"], Past]:
        """Moments [B, T', H / stride, W / stride, 2 c], all means first; and the next cache."""
        first, *before, middle, last = pasts(past, len(self.levels) + 3)
        x, first = self.conv_in(squares_to_channels(x, self.patch), first)
        new_past = []
        for level, level_past in zip(self.levels, before, strict=True):
            x, level_past = level(x, level_past)
            new_past.append(level_past)
        x, middle = self.middle(x, middle)
        x, last = self.conv_out(jax.nn.silu(self.norm_out(x)), last)
        return self.mix_out(x), (first, *new_past, middle, last)
