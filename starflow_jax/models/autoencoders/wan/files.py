"""Wan autoencoders of tensors from elsewhere, and back to the layout of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.models.autoencoders.wan.config import config_from_diffusers, config_from_original, config_to_diffusers
from starflow_jax.models.autoencoders.wan.model import WanAutoencoder
from starflow_jax.models.autoencoders.wan.names import Tensors, original_name, params_of, tensors_of


def wan_from_diffusers(config: Mapping[str, Any], tensors: Tensors) -> tuple[WanAutoencoder, Params]:
    """The autoencoder of a diffusers folder of kind `AutoencoderKLWan`, Wan2.1 or Wan2.2, and its parameters.

    Args:
      config: of its `config.json`; `temporal_scale`, which diffusers does not know, is read too.
      tensors: by name, of any floating type.

    Raises:
      ValueError: a configuration that is not built here, or other tensors than it says.
    """
    autoencoder = WanAutoencoder(config_from_diffusers(config), config.get("temporal_scale", 1.0))
    return autoencoder, params_of(autoencoder.config, tensors, autoencoder.abstract()[1])


def wan_to_diffusers(autoencoder: WanAutoencoder, params: Params) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `wan_from_diffusers`."""
    config = config_to_diffusers(autoencoder.config)
    if autoencoder.temporal_scale != 1.0:
        config["temporal_scale"] = autoencoder.temporal_scale
    return config, tensors_of(autoencoder.config, params)


def wan22_from_original(
    tensors: Tensors,
    *,
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
    temporal_scale: float = 1.0,
) -> tuple[WanAutoencoder, Params]:
    """The autoencoder in the layout of the original `Wan2.2_VAE.pth`, and its parameters.

    Args:
      tensors: by name, of any floating type; its configuration is read from their shapes.
      latents_mean, latents_std: by channel; those published with Wan2.2 where None.
      temporal_scale: see `WanAutoencoder`.

    Raises:
      ValueError: tensors of something else.
    """
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    autoencoder = WanAutoencoder(config_from_original(shapes, latents_mean, latents_std), temporal_scale)
    params = params_of(autoencoder.config, tensors, autoencoder.abstract()[1], original_name)
    return autoencoder, params
