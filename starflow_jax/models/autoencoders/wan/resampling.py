"""Down- and upsampling in space and time of causal video autoencoders, and space-to-depth.

The first frame of a video is excluded from temporal resampling: 1 + 2k frames become 1 + k, and vice versa. Frames are
[B, T, H, W, C]; for caches see `layers`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from starflow_jax.models.autoencoders.wan.layers import CausalConv, FrameConv, Past
from starflow_jax.nn.linear import Compute


class Halving(nnx.Module):
    """Downsamples by 2 in space, and in time where `temporal`."""

    def __init__(self, width: int, temporal: bool, key: PRNGKeyArray, compute: Compute):
        first, second = jax.random.split(key)
        self.conv = FrameConv(width, width, first, compute)
        self.time_conv = CausalConv(width, width, second, compute, side=1) if temporal else None

    def __call__(
        self, x: Float[Array, "B T H W C"], past: Past
    ) -> tuple[Float[Array, "B frames rows columns C"], Past]:
        """[B, T, H, W, D] to [B, T', H / 2, W / 2, D]; T' = 1 + (T - 1) / 2 at the beginning, else T / 2."""
        x = self.conv(x, halved=True)
        if self.time_conv is None:
            return x, ()
        if past is not None:
            window = jnp.concatenate([past, x], axis=1)
            return self.time_conv.windows(window, stride=2), x[:, -1:]
        if x.shape[1] == 1:
            return x, x
        return jnp.concatenate([x[:, :1], self.time_conv.windows(x, stride=2)], axis=1), x[:, -1:]


class Doubling(nnx.Module):
    """Upsamples by 2 in space, and in time where `temporal`."""

    def __init__(self, inputs: int, outputs: int, temporal: bool, key: PRNGKeyArray, compute: Compute):
        first, second = jax.random.split(key)
        self.time_conv = CausalConv(inputs, 2 * inputs, second, compute, side=1) if temporal else None
        self.conv = FrameConv(inputs, outputs, first, compute)

    def __call__(
        self, x: Float[Array, "B T rows columns C"], past: Past
    ) -> tuple[Float[Array, "B frames H W outputs"], Past]:
        """[B, T, H, W, inputs] to [B, T', 2 H, 2 W, outputs]; T' = 1 + 2 (T - 1) at the beginning, else 2 T."""
        if self.time_conv is None:
            return self.conv(_repeated(x)), ()
        # The temporal upsampling does not read the first frame of the video.
        first_frame, rest = (x[:, :1], x[:, 1:]) if past is None else (x[:, :0], x)
        if rest.shape[1] > 0:
            pairs, past = self.time_conv(rest, past)
            batch, frames, height, width, _ = pairs.shape
            pairs = jnp.moveaxis(pairs.reshape(batch, frames, height, width, 2, -1), 4, 2)
            x = jnp.concatenate([first_frame, pairs.reshape(batch, 2 * frames, height, width, -1)], axis=1)
        else:
            past = jnp.zeros((x.shape[0], 2, *x.shape[2:]), x.dtype)
        return self.conv(_repeated(x)), past


def _repeated(x: Float[Array, "B T rows columns C"]) -> Float[Array, "B T H W C"]:
    """Nearest-neighbour upsampling by 2."""
    return jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)


def averaged(
    x: Float[Array, "B T H W C"], channels: int, frames: int, side: int, *, beginning: bool
) -> Float[Array, "B t rows columns {channels}"]:
    """The parameter-free shortcut of a downsampling level: means over boxes.

    The values of a box of `frames` x `side` x `side` positions, in the order (channel, frame, row, column), are divided
    into `channels` equal groups, which are averaged. At the beginning of a video, the first frame is the last of a box
    whose other frames are zeros.

    Returns:
      [B, T', H / side, W / side, channels].
    """
    if beginning and frames > 1:
        x = jnp.pad(x, ((0, 0), (frames - 1, 0), (0, 0), (0, 0), (0, 0)))
    batch, count, height, width, inputs = x.shape
    boxes = x.reshape(batch, count // frames, frames, height // side, side, width // side, side, inputs)
    boxes = boxes.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    runs = boxes.reshape(*boxes.shape[:4], channels, -1)
    return jnp.mean(runs.astype(jnp.float32), axis=-1).astype(x.dtype)


def duplicated(
    x: Float[Array, "B t rows columns C"], channels: int, frames: int, side: int, *, beginning: bool
) -> Float[Array, "B T H W {channels}"]:
    """The parameter-free shortcut of an upsampling level: copies, the transpose of `averaged`.

    Returns:
      [B, T', H side, W side, channels]; at the beginning of a video its first frame becomes one frame.
    """
    batch, count, height, width, inputs = x.shape
    copies = jnp.repeat(x, channels * frames * side * side // inputs, axis=-1)
    boxes = copies.reshape(batch, count, height, width, channels, frames, side, side).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    y = boxes.reshape(batch, count * frames, height * side, width * side, channels)
    return y[:, frames - 1 :] if beginning else y


def squares_to_channels(x: Float[Array, "B T H W C"], side: int) -> Float[Array, "B T rows columns c"]:
    """[B, T, H, W, C] to [B, T, H / side, W / side, C side^2], channels in the order (colour, column, row)."""
    batch, frames, height, width, colours = x.shape
    cells = x.reshape(batch, frames, height // side, side, width // side, side, colours)
    return cells.transpose(0, 1, 2, 4, 6, 5, 3).reshape(batch, frames, height // side, width // side, -1)


def channels_to_squares(x: Float[Array, "B T rows columns c"], side: int) -> Float[Array, "B T H W C"]:
    """The inverse of `squares_to_channels`."""
    batch, frames, height, width, _ = x.shape
    cells = x.reshape(batch, frames, height, width, -1, side, side).transpose(0, 1, 2, 6, 3, 5, 4)
    return cells.reshape(batch, frames, height * side, width * side, -1)
