"""A small autoencoder of crops of photographs, 32 x 32 pixels to 8 x 8 latents of 4 channels, without any download.

    starflow train-autoencoder --config experiments/tiny_vae.py --workdir runs/vae
    starflow finetune-decoder --config experiments/tiny_vae.py:decoder --autoencoder runs/vae/autoencoder \
        --workdir runs/decoder

`experiments/photos_latents.py` trains a flow on its latents.

Hardware: any CPU; 4 min 45 s of CPU time. Expected (seed 0, 256 held-out crops): PSNR 28.9 dB; for latents with noise
of standard deviation 0.3, 26.3 dB, and 27.7 dB with the fine-tuned decoder.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Args:
      variant: "" for a new autoencoder, "decoder" to fine-tune its decoder on noisy latents; "tiny" and "tiny_decoder"
        are small versions of these that train in seconds, for tests only.

    Raises:
      ValueError: an unknown variant.
    """
    if variant not in ("", "decoder", "tiny", "tiny_decoder"):
        raise ValueError(f"variant must be '', 'decoder', 'tiny' or 'tiny_decoder', got {variant!r}")
    config = ConfigDict(
        {
            "name": "tiny_vae",
            "image_size": 32,
            "data": {"source": "photos"},
            "train": {"steps": 2000, "batch_size": 8, "lr": 2e-3, "warmup": 50, "ema": 0.99, "log_every": 100},
            "seed": 0,
        }
    )
    if "decoder" in variant:
        config.name = "tiny_decoder"
        config.autoencoder = "runs/vae/autoencoder"
        config.loss = {
            "latent_noise": 0.3,
            "adversarial": 0.05,
            "discriminator_start": 600,
            "discriminator_width": 16,
            "discriminator_layers": 2,
        }
        config.train.update(steps=1000, lr=1e-3)
    else:
        config.loss = {"kl": 1e-4}
        config.network = {"block_out_channels": (16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}
    if variant.startswith("tiny"):
        config.train.update(steps=4, batch_size=4, log_every=2, warmup=1)
        config.evaluate = 6
        config.image_size = 16
        if "decoder" in variant:
            config.loss.update(discriminator_start=2)
        else:
            config.network.update(block_out_channels=(4, 4), norm_num_groups=2)
    return config
