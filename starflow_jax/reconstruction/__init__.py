"""Training of autoencoders, and of decoders on noisy latents.

- `lpips`: a perceptual distance, by weights that the user names.
- `discriminator`: a patch discriminator, its hinge loss, the adaptive weight.
- `step`: one update; `loop`: from the first to the last, with checkpoints.
- `quality`: PSNR of what comes back through the latents.
"""

from starflow_jax.reconstruction.discriminator import PatchDiscriminator
from starflow_jax.reconstruction.lpips import lpips, lpips_params, read_lpips
from starflow_jax.reconstruction.reconstruction_quality import Reconstruction, quality_table
from starflow_jax.reconstruction.train_loop import Trained, train_autoencoder

__all__ = [
    "PatchDiscriminator",
    "Reconstruction",
    "Trained",
    "lpips",
    "lpips_params",
    "quality_table",
    "read_lpips",
    "train_autoencoder",
]
