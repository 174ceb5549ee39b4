"""What an autoencoder offers. Its parameters are apart, so that it is static under `jit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax

from starflow_jax.core.config.checks import check

Params = Mapping[str, Any]  # nested; arrays, of NumPy or of JAX


class Autoencoder(Protocol):
    """A hashable value; both directions are pure functions of the parameters and the data."""

    @property
    def stride(self) -> int:
        """Pixels along a side of what becomes one latent position."""
        ...

    @property
    def frame_stride(self) -> int:
        """Frames of pixels that become one latent frame.

        1 for autoencoders of pictures, which take every frame of a clip by itself. A causal one of videos has more: it
        takes clips of 1 + frame_stride k frames, whose first frame becomes a latent frame alone, and stills.
        """
        ...

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def pixel_channels(self) -> int:
        """Channels of a picture."""
        ...

    def encode(self, params: Params, pixels: jax.Array) -> jax.Array:
        """Pixels in [-1, 1] to latents as a flow reads them (scaled), both float32.

        Args:
          pixels: [B, H, W, C] of stills or [B, T, H, W, C] of clips, T = 1 + frame_stride k.

        Returns:
          [B, h, w, channels] or [B, 1 + k, h, w, channels], h = H / stride and w = W / stride. Nothing is drawn: of an
          autoencoder with a posterior it is the mean.
        """
        ...

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """Latents to pixels, float32, which may leave [-1, 1] a little; shapes as of `encode`, the other way."""
        ...


def latent_shape(autoencoder: Autoencoder | None, shape: Sequence[int]) -> tuple[int, ...]:
    """What pixels [H, W, C] or [T, H, W, C] are encoded to, [h, w, c] or [t, h, w, c]; without one, the same.

    Raises:
      ValueError: sides or frames that the autoencoder does not take.
    """
    if autoencoder is None:
        return tuple(shape)
    *frames, height, width, _ = shape
    side, step = autoencoder.stride, autoencoder.frame_stride
    check(
        height % side == 0 and width % side == 0,
        f"sides must be multiples of {side} for this autoencoder, got {height} x {width}",
    )
    latent_frames = []
    for count in frames:
        check(
            (count - 1) % step == 0,
            f"frames must be 1 plus a multiple of {step} for this autoencoder, got {count}",
        )
        latent_frames.append(1 + (count - 1) // step)
    return (*latent_frames, height // side, width // side, autoencoder.channels)


@dataclasses.dataclass(frozen=True)
class Identity:
    """Pixels are the latents."""

    pixel_channels: int

    @property
    def stride(self) -> int:
        """1."""
        return 1

    @property
    def frame_stride(self) -> int:
        """1."""
        return 1

    @property
    def channels(self) -> int:
        """Those of the picture."""
        return self.pixel_channels

    def encode(self, params: Params, pixels: jax.Array) -> jax.Array:
        """The same."""
        return pixels

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """The same."""
        return latents
