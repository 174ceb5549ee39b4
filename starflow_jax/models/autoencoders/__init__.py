"""Frozen autoencoders, which map pixels to the latents that a flow is trained on, and back.

- `protocol`: the interface; `Identity`.
- `patch_pca`: principal components of patches, a linear autoencoder that is fitted in a minute.
- `kl`: the convolutional autoencoder of latent diffusion; `wan`: the causal video autoencoders Wan2.1 and Wan2.2.
- `storage`: files and folders, read by the formats that are registered in `AUTOENCODERS`.
- `tiled`: large frames tile by tile; `decoding`: latents to images and videos with a stored autoencoder.
"""

from starflow_jax.models.autoencoders.decoding import decode_by, decode_in_batches, decode_latents, has_autoencoder
from starflow_jax.models.autoencoders.patch_pca import PatchPCA, fit_patch_pca
from starflow_jax.models.autoencoders.protocol import Autoencoder, Identity, latent_shape
from starflow_jax.models.autoencoders.storage import (
    AUTOENCODER_FILE,
    AUTOENCODER_FOLDER,
    keep_autoencoder,
    kept_autoencoder,
    load_autoencoder,
    save_autoencoder,
)
from starflow_jax.models.autoencoders.tiled import Tiled
from starflow_jax.models.autoencoders.wan.config import WanConfig
from starflow_jax.models.autoencoders.wan.files import wan22_from_original, wan_from_diffusers, wan_to_diffusers
from starflow_jax.models.autoencoders.wan.model import WanAutoencoder
from starflow_jax.models.autoencoders.wan.streaming import decode_stream, encode_stream
from starflow_jax.models.autoencoders.wan.tiling import TiledWan

__all__ = [
    "AUTOENCODER_FILE",
    "AUTOENCODER_FOLDER",
    "Autoencoder",
    "Identity",
    "PatchPCA",
    "Tiled",
    "TiledWan",
    "WanAutoencoder",
    "WanConfig",
    "decode_by",
    "decode_in_batches",
    "decode_latents",
    "decode_stream",
    "encode_stream",
    "fit_patch_pca",
    "has_autoencoder",
    "keep_autoencoder",
    "kept_autoencoder",
    "latent_shape",
    "load_autoencoder",
    "save_autoencoder",
    "wan22_from_original",
    "wan_from_diffusers",
    "wan_to_diffusers",
]
