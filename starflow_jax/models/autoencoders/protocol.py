"""The interface of autoencoders. Parameters are separate, so that an autoencoder is static under `jit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from starflow_jax.core.config.checks import check

Params = Mapping[str, Any]  # nested; arrays of NumPy or JAX
AnyArray = jax.Array | np.ndarray


@runtime_checkable
class Autoencoder(Protocol):
    """A hashable value; `encode` and `decode` are pure functions of the parameters and the data."""

    @property
    def stride(self) -> int:
        """Side of the square of pixels that one latent position encodes."""
        ...

    @property
    def frame_stride(self) -> int:
        """Number of frames of pixels that one latent frame encodes.

        It is 1 for image autoencoders, which encode every frame of a clip independently. A causal video autoencoder
        reads still images, and clips of 1 + frame_stride k frames: the first latent frame encodes one frame.
        """
        ...

    @property
    def channels(self) -> int:
        """Number of channels of latents."""
        ...

    @property
    def pixel_channels(self) -> int:
        """Number of channels of images."""
        ...

    def encode(self, params: Params, pixels: Float[AnyArray, "*B H W C"]) -> Float[Array, "*b rows columns c"]:
        """Encodes pixels in [-1, 1] to scaled latents, as a flow reads them.

        Args:
          params: the parameters.
          pixels: float32 [B, H, W, C] for images or [B, T, H, W, C] for clips, T = 1 + frame_stride k.

        Returns:
          float32 [B, H / stride, W / stride, channels] or [B, 1 + k, H / stride, W / stride, channels]. Of an
          autoencoder with a posterior, it is the mean.
        """
        ...

    def decode(self, params: Params, latents: Float[AnyArray, "*B rows columns c"]) -> Float[Array, "*b H W C"]:
        """Decodes scaled latents to float32 pixels, which may slightly exceed [-1, 1]; shapes are those of `encode`."""
        ...


@runtime_checkable
class AutoencoderFormat(Protocol):
    """Reads and writes the autoencoders of one `_class_name`; a class of the registry `AUTOENCODERS`.

    Attributes:
      kind: the class of the autoencoders, a frozen dataclass with a field `dtype`.
    """

    kind: type[Any]

    @staticmethod
    def read(config: Mapping[str, Any], tensors: Mapping[str, Float[np.ndarray, "..."]]) -> tuple[Any, Params]:
        """Builds an autoencoder and its nested float32 parameters.

        Args:
          config: contents of `config.json`; tensors: tensors by name, of any floating-point dtype.

        Raises:
          ValueError: a field or tensor is invalid; the message begins with its name.
        """
        ...

    @staticmethod
    def write(autoencoder: Any, params: Params) -> tuple[Mapping[str, Any], Mapping[str, Float[np.ndarray, "..."]]]:
        """The inverse of `read`; the configuration does not include `_class_name`."""
        ...


def latent_shape(autoencoder: Autoencoder | None, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the latents of pixels [H, W, C] or [T, H, W, C]; without an autoencoder, the same shape.

    Raises:
      ValueError: the sides or frames are not multiples of the strides.
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
    """The latents are the pixels."""

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
        """Channels of the images."""
        return self.pixel_channels

    def encode(self, params: Params, pixels: Float[AnyArray, "*B H W C"]) -> Float[Array, "*B H W C"]:
        """Returns the pixels."""
        return jnp.asarray(pixels)

    def decode(self, params: Params, latents: Float[AnyArray, "*B H W C"]) -> Float[Array, "*B H W C"]:
        """Returns the latents."""
        return jnp.asarray(latents)
