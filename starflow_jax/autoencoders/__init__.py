"""Frozen autoencoders: pixels to the latents that a flow is trained on, and back.

- `protocol`: what every one offers; `Identity`.
- `patch_pca`: the principal components of patches, a linear one that is fitted in a minute.
- `stored`: parameters in a file.
"""

from starflow_jax.autoencoders.patch_pca import PatchPCA, fit_patch_pca
from starflow_jax.autoencoders.protocol import Autoencoder, Identity
from starflow_jax.autoencoders.stored import (
    AUTOENCODER_FILE,
    decode_by,
    decode_latents,
    has_autoencoder,
    load_autoencoder,
    save_autoencoder,
)

__all__ = [
    "AUTOENCODER_FILE",
    "Autoencoder",
    "Identity",
    "PatchPCA",
    "decode_by",
    "decode_latents",
    "fit_patch_pca",
    "has_autoencoder",
    "load_autoencoder",
    "save_autoencoder",
]
