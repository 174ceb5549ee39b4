"""Change of volume by the scaling of latents, which relates densities of scaled and raw latents.

A flow on latents reads s = (r - shift) / spread of raw latents r. Densities then obey
log p(r) = log p(s) + log |ds/dr|, so bits of raw latents are those of the scaled ones less log2 |ds/dr| a dimension:
the number in which models with different scaling factors compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from starflow_jax.models.autoencoders import Autoencoder, Identity
from starflow_jax.models.autoencoders.kl.model import AutoencoderKL
from starflow_jax.models.autoencoders.patch_pca import PatchPCA
from starflow_jax.models.autoencoders.tiled import Tiled
from starflow_jax.models.autoencoders.wan.model import WanAutoencoder


def log_scale(autoencoder: Autoencoder, params: Mapping[str, Any], shape: tuple[int, ...]) -> float | None:
    """The mean of log |ds/dr| over the dimensions of a latent, in nats; None where the scaling is not known.

    Args:
      autoencoder, params: that encoded the latents; shape: of one latent, [h, w, c] or [t, h, w, c].
    """
    if isinstance(autoencoder, Tiled):
        return log_scale(autoencoder.autoencoder, params, shape)
    if isinstance(autoencoder, Identity):
        return 0.0
    if isinstance(autoencoder, AutoencoderKL):
        return math.log(autoencoder.scaling_factor)
    if isinstance(autoencoder, PatchPCA):
        return -float(np.mean(np.log(np.asarray(params["std"], np.float64))))
    if isinstance(autoencoder, WanAutoencoder):
        spread = -float(np.mean(np.log(np.asarray(autoencoder.config.latents_std, np.float64))))
        frames = shape[0] if len(shape) == 4 else 1
        # The first frame of a clip is not scaled by temporal_scale.
        return spread + math.log(autoencoder.temporal_scale) * (frames - 1) / frames
    return None
