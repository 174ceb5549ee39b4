"""Reads Wan autoencoders in the layouts of diffusers and of the original release, and writes that of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from starflow_jax.core.registries import AUTOENCODERS
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.models.autoencoders.wan.config import config_from_diffusers, config_from_original, config_to_diffusers
from starflow_jax.models.autoencoders.wan.model import WanAutoencoder
from starflow_jax.models.autoencoders.wan.names import Tensors, from_tensors, original_name, to_tensors


def wan_from_diffusers(config: Mapping[str, Any], tensors: Tensors) -> tuple[WanAutoencoder, Params]:
    """The autoencoder of a diffusers folder of class `AutoencoderKLWan`, Wan2.1 or Wan2.2, and its parameters.

    Args:
      config: contents of `config.json`; the additional field `temporal_scale` is supported.
      tensors: tensors by name, of any floating-point dtype.

    Raises:
      ValueError: the configuration is not supported, or the tensors do not match it.
    """
    autoencoder = WanAutoencoder(config_from_diffusers(config), config.get("temporal_scale", 1.0))
    return autoencoder, from_tensors(autoencoder.config, tensors, autoencoder.abstract()[1])


def wan_to_diffusers(
    autoencoder: WanAutoencoder, params: Params
) -> tuple[dict[str, Any], dict[str, Float[np.ndarray, "..."]]]:
    """The inverse of `wan_from_diffusers`."""
    config = config_to_diffusers(autoencoder.config)
    if autoencoder.temporal_scale != 1.0:
        config["temporal_scale"] = autoencoder.temporal_scale
    return config, to_tensors(autoencoder.config, params)


def wan22_from_original(
    tensors: Tensors,
    *,
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
    temporal_scale: float = 1.0,
) -> tuple[WanAutoencoder, Params]:
    """The autoencoder in the layout of the original `Wan2.2_VAE.pth`, and its parameters.

    Args:
      tensors: tensors by name, of any floating-point dtype; the configuration is inferred from their shapes.
      latents_mean, latents_std: by channel; None for those published with Wan2.2.
      temporal_scale: see `WanAutoencoder`.

    Raises:
      ValueError: the tensors are not those of Wan2.2.
    """
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    autoencoder = WanAutoencoder(config_from_original(shapes, latents_mean, latents_std), temporal_scale)
    params = from_tensors(autoencoder.config, tensors, autoencoder.abstract()[1], original_name)
    return autoencoder, params


@AUTOENCODERS.register("AutoencoderKLWan")
class WanFormat:
    """See `AutoencoderFormat`."""

    kind = WanAutoencoder
    read = staticmethod(wan_from_diffusers)
    write = staticmethod(wan_to_diffusers)
