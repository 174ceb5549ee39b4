"""Frozen autoencoders: pixels to the latents that a flow is trained on, and back.

- `protocol`: what every one offers; `Identity`.
- `patch_pca`: the principal components of patches, a linear one that is fitted in a minute.
- `stored`: files and folders; `FORMATS`, the table of what is read by what.
- `wan`: causal autoencoders of videos, Wan2.1 and Wan2.2; `wan_config`, `wan_encoder`, `wan_decoder`, `wan_layers`,
  `wan_resampling`: their parts; `wan_files`, `wan_names`: weights from elsewhere; `wan_streaming`: chunk by chunk;
  `wan_tiling`: large frames of videos.
- `tiling`: large frames tile by tile; `decoding`: latents to pictures by what is stored.
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
