"""Layers of causal video autoencoders, which cache the frames that the next chunk needs.

Frames are [B, T, H, W, C]. A causal layer takes its cache (the past) and returns the next one; None is the beginning of
a video. A whole video is a single chunk, and a video in chunks gives the same result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.nn.linear import Compute, Linear

# Cached frames of all layers as nested tuples of arrays; None at the beginning of a video.
Past = Any


def pasts(past: Past, count: int) -> tuple[Past, ...]:
    """The caches of the `count` parts of a layer."""
    return (None,) * count if past is None else past


class ChannelNorm(nnx.Module):
    """RMS norm over channels at every position, in float32, with a gain."""

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.ones((width,)))

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        h = x.astype(jnp.float32)
        squares = jnp.maximum(jnp.sum(h * h, axis=-1, keepdims=True), 1e-24)  # lengths are at least 1e-12
        return (h * (jax.lax.rsqrt(squares) * math.sqrt(h.shape[-1])) * self.weight[...]).astype(x.dtype)


class FrameConv(nnx.Module):
    """A 2D convolution of every frame; kernel [rows, columns, inputs, outputs] and bias in float32."""

    def __init__(self, inputs: int, outputs: int, key: PRNGKeyArray, compute: Compute, side: int = 3):
        std = (side * side * inputs) ** -0.5
        self.kernel = nnx.Param(std * jax.random.normal(key, (side, side, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.compute = compute

    def __call__(
        self, x: Float[Array, "B T H W C"], *, halved: bool = False
    ) -> Float[Array, "B T rows columns outputs"]:
        """[B, T, H, W, inputs] to [B, T, H, W, outputs]; with `halved`, stride 2 and padding at the end."""
        stride, border = (2, (0, 1)) if halved else (1, (self.kernel.shape[0] // 2,) * 2)
        y = frame_conv(x, self.kernel[...], self.compute, stride, border)
        return y + self.bias[...].astype(y.dtype)


class CausalConv(nnx.Module):
    """A causal convolution over three frames: the current one and the two before.

    The kernel [3, rows, columns, inputs, outputs] and the bias are float32. The video is padded with zeros in front.

    Args:
      side: side of the spatial window, 3 or 1.
    """

    def __init__(self, inputs: int, outputs: int, key: PRNGKeyArray, compute: Compute, side: int = 3):
        std = (3 * side * side * inputs) ** -0.5
        self.kernel = nnx.Param(std * jax.random.normal(key, (3, side, side, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.compute = compute

    def __call__(self, x: Float[Array, "B T H W C"], past: Past) -> tuple[Float[Array, "B T H W outputs"], Past]:
        """[B, T, H, W, inputs] to [B, T, H, W, outputs]; the cache is the last two frames."""
        x = x.astype(self.compute.dtype)
        before = jnp.zeros((x.shape[0], 2, *x.shape[2:]), x.dtype) if past is None else past
        x = jnp.concatenate([before, x], axis=1)
        return self.windows(x), x[:, -2:]

    def windows(self, x: Float[Array, "B T H W C"], stride: int = 1) -> Float[Array, "B frames H W outputs"]:
        """Valid convolution over time with a stride: 1 + (T - 3) // stride frames."""
        kernel = self.kernel[...]
        side = kernel.shape[1]
        count = 1 + (x.shape[1] - 3) // stride
        # Three 2D convolutions, because XLA's CPU backend runs a 3D convolution at half the speed or less.
        y = self.bias[...].astype(self.compute.dtype)
        for frame in range(3):
            shifted = x[:, frame : frame + stride * (count - 1) + 1 : stride]
            y = y + frame_conv(shifted, kernel[frame], self.compute, 1, (side // 2, side // 2))
        return y


def frame_conv(
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "height width C outputs"],
    compute: Compute,
    stride: int,
    border: tuple[int, int],
) -> Float[Array, "B T rows columns outputs"]:
    """Convolution of the frames [B, T, H, W, C] by [rows, columns, C, outputs], padded with zeros."""
    batch, frames, *sides = x.shape
    y = jax.lax.conv_general_dilated(
        x.astype(compute.dtype).reshape(batch * frames, *sides),
        kernel.astype(compute.dtype),
        (stride, stride),
        (border, border),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=compute.precision,
    )
    return y.reshape(batch, frames, *y.shape[1:])


class ResidualBlock(nnx.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, inputs: int, outputs: int, key: PRNGKeyArray, compute: Compute):
        keys = jax.random.split(key, 3)
        self.norm1 = ChannelNorm(inputs)
        self.conv1 = CausalConv(inputs, outputs, keys[0], compute)
        self.norm2 = ChannelNorm(outputs)
        self.conv2 = CausalConv(outputs, outputs, keys[1], compute)
        same = inputs == outputs
        self.shortcut = None if same else Linear(inputs, outputs, keys[2], name="shortcut", compute=compute)

    def __call__(self, x: Float[Array, "B T H W C"], past: Past) -> tuple[Float[Array, "B T H W outputs"], Past]:
        """[B, T, H, W, inputs] to [B, T, H, W, outputs]."""
        first, second = pasts(past, 2)
        h, first = self.conv1(jax.nn.silu(self.norm1(x)), first)
        h, second = self.conv2(jax.nn.silu(self.norm2(h)), second)
        return h + (x if self.shortcut is None else self.shortcut(x)), (first, second)


class FrameAttention(nnx.Module):
    """x + single-head self-attention over the positions of each frame."""

    def __init__(self, width: int, key: PRNGKeyArray, compute: Compute):
        first, second = jax.random.split(key)
        self.norm = ChannelNorm(width)
        self.project = Linear(width, 3 * width, first, name="project", compute=compute)
        self.out = Linear(width, width, second, name="out", compute=compute)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """[B, T, H, W, D] to the same."""
        batch, frames, height, width, channels = x.shape
        options = {"precision": self.project.compute.precision, "preferred_element_type": jnp.float32}

        def attend(projected: Float[Array, "positions packed"]) -> Float[Array, "positions C"]:
            query, key, value = jnp.split(projected, 3, axis=-1)
            logits = jnp.einsum("nd,md->nm", query, key, **options) * channels**-0.5
            weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
            return jnp.einsum("nm,md->nd", weights, value, **options).astype(value.dtype)

        projected = self.project(self.norm(x)).reshape(batch * frames, height * width, 3 * channels)
        # One frame at a time, because the attention weights of all frames would be the largest array of the network.
        attended = jax.lax.map(attend, projected)
        return x + self.out(attended.reshape(x.shape))


class Middle(nnx.Module):
    """The innermost layers: a residual block, attention, a residual block."""

    def __init__(self, width: int, key: PRNGKeyArray, compute: Compute):
        keys = jax.random.split(key, 3)
        self.first = ResidualBlock(width, width, keys[0], compute)
        self.attention = FrameAttention(width, keys[1], compute)
        self.second = ResidualBlock(width, width, keys[2], compute)

    def __call__(self, x: Float[Array, "B T H W C"], past: Past) -> tuple[Float[Array, "B T H W C"], Past]:
        """[B, T, H, W, D] to the same."""
        first, second = pasts(past, 2)
        x, first = self.first(x, first)
        x, second = self.second(self.attention(x), second)
        return x, (first, second)


def in_turn(
    blocks: Sequence[Any], resample: Any, x: Float[Array, "B T H W C"], past: Past
) -> tuple[Float[Array, "B frames rows columns outputs"], Past]:
    """Applies residual blocks and an optional resampling after them, each with its own cache."""
    *before, resampled = pasts(past, len(blocks) + 1)
    new_past = []
    for block, block_past in zip(blocks, before, strict=True):
        x, block_past = block(x, block_past)
        new_past.append(block_past)
    if resample is not None:
        x, resampled = resample(x, resampled)
    return x, (*new_past, resampled)
