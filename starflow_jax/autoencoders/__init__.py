"""Frozen autoencoders: pixels to the latents that a flow is trained on, and back.

- `protocol`: what every one offers; `Identity`.
- `patch_pca`: the principal components of patches, a linear one that is fitted in a minute.
- `stored`: files and folders; `FORMATS`, the table of what is read by what.
- `tiling`: large frames tile by tile; `decoding`: latents to pictures by what is stored.
"""

from starflow_jax.autoencoders.decoding import decode_by, decode_in_batches, decode_latents, has_autoencoder
from starflow_jax.autoencoders.patch_pca import PatchPCA, fit_patch_pca
from starflow_jax.autoencoders.protocol import Autoencoder, Identity, latent_shape
from starflow_jax.autoencoders.stored import (
    AUTOENCODER_FILE,
    AUTOENCODER_FOLDER,
    keep_autoencoder,
    kept_autoencoder,
    load_autoencoder,
    save_autoencoder,
)
from starflow_jax.autoencoders.tiling import Tiled

__all__ = [
    "AUTOENCODER_FILE",
    "AUTOENCODER_FOLDER",
    "Autoencoder",
    "Identity",
    "PatchPCA",
    "Tiled",
    "decode_by",
    "decode_in_batches",
    "decode_latents",
    "fit_patch_pca",
    "has_autoencoder",
    "keep_autoencoder",
    "kept_autoencoder",
    "latent_shape",
    "load_autoencoder",
    "save_autoencoder",
]
