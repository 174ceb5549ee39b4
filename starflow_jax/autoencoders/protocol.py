"""What an autoencoder offers. Its parameters are apart, so that it is static under `jit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax

Params = Mapping[str, Any]  # arrays, of NumPy or of JAX


class Autoencoder(Protocol):
    """A hashable value; both directions are pure functions of the parameters and the data."""

    @property
    def stride(self) -> int:
        """Pixels along a side of what becomes one latent position."""
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
        """Pixels in [-1, 1], float32 [..., H, W, C], to latents float32 [..., H / stride, W / stride, channels]."""
        ...

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """Latents to pixels, which may leave [-1, 1] a little."""
        ...


@dataclasses.dataclass(frozen=True)
class Identity:
    """Pixels are the latents."""

    pixel_channels: int

    @property
    def stride(self) -> int:
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
