"""A flow on the latents of `experiments/tiny_vae.py`: all steps of a latent flow on a laptop, without any download.

    starflow train-autoencoder --config experiments/tiny_vae.py --workdir runs/vae
    starflow encode --config experiments/photos_latents.py --autoencoder runs/vae/autoencoder --out runs/latents/train
    starflow train --config experiments/photos_latents.py --config.data.source=latents \
        --config.data.path=runs/latents --workdir runs/flow
    starflow sample --workdir runs/flow --num 40 --guidance 1 --denoise score --out photos.png

A class is one of ten photographs, and an image is a crop of it. To encode inside the training step, leave out the
second command and give the third `--config.data.autoencoder=runs/vae/autoencoder` instead of source and path.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The experiment.

    Args:
      variant: "" for the full experiment, "tiny" for a model that trains in seconds, for tests only.

    Raises:
      ValueError: an unknown variant.
    """
    config = ConfigDict(
        {
            "name": "photos_latents",
            "flow": {
                "family": "tarflow",
                "channels": 4,
                "image_size": 8,
                "patch_size": 1,
                "width": 64,
                "num_blocks": 4,
                "layers_per_block": 1,
                "head_dim": 32,
                "num_classes": 10,
            },
            "data": {"source": "photos", "noise": "gaussian", "noise_std": 0.3, "label_drop": 0.1},
            "train": {
                "steps": 2000,
                "batch_size": 32,
                "lr": 2e-3,
                "warmup": 100,
                "grad_clip": 1.0,
                "skip_after": None,
                "ema": 0.99,
                "steps_per_call": 10,
                "log_every": 100,
                "checkpoint_every": 1000,
                "sample_every": 1000,
            },
            "sample": {"num": 40, "guidance": 1.0, "solver": "jacobi", "denoise": "score"},
            "seed": 0,
        }
    )
    if is_tiny(variant):
        config.flow.update(width=16, num_blocks=2, head_dim=16, image_size=4)
        config.train.update(steps=4, batch_size=4, steps_per_call=2, log_every=2, warmup=1)
        config.sample.num = 4
    return config
