"""Training of autoencoders, and of decoders on noisy latents.

- `lpips`: the perceptual distance, with weights that the user names.
- `discriminator`: a patch discriminator, its hinge loss and the adaptive weight.
- `update`: one update as a pure function. `reconstruction_request`, `reconstruction_setup`, `train_loop`: the run.
- `reconstruction_quality`: PSNR of reconstructions from clean and noisy latents.
"""

from starflow_jax.reconstruction.discriminator import PatchDiscriminator
from starflow_jax.reconstruction.lpips import lpips, lpips_params, read_lpips
from starflow_jax.reconstruction.reconstruction_quality import Reconstruction, quality_table
from starflow_jax.reconstruction.reconstruction_request import FinetuneDecoderRequest, TrainAutoencoderRequest
from starflow_jax.reconstruction.train_loop import TrainedAutoencoder, train_autoencoder

__all__ = [
    "FinetuneDecoderRequest",
    "PatchDiscriminator",
    "Reconstruction",
    "TrainAutoencoderRequest",
    "TrainedAutoencoder",
    "lpips",
    "lpips_params",
    "quality_table",
    "read_lpips",
    "train_autoencoder",
]
