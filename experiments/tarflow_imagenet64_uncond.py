"""TARFlow, unconditional ImageNet 64x64, for samples (Gaussian noise 0.05).

    starflow train --config experiments/tarflow_imagenet64_uncond.py --workdir W --config.data.path=FOLDER

FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 64, 64, 3]) and `label` (integers).
The released run: batch 256, 200 epochs, 8 GPUs.
Expected (arXiv 2412.06329): FID 18.42. 460,142,784 parameters.
`experiments/tarflow_imagenet64_uncond.py:tiny` is the same experiment at a size that a laptop trains in seconds.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests.

    Raises:
      ValueError: for another variant.
    """
    if variant not in ("", "tiny"):
        raise ValueError(f"variant must be '' or 'tiny', got {variant!r}")
    config = ConfigDict()
    config.name = "tarflow-imagenet64-uncond"
    config.flow = ConfigDict(
        {
            "family": "tarflow",
            "channels": 3,
            "image_size": 64,
            "patch_size": 2,
            "width": 768,
            "num_blocks": 8,
            "layers_per_block": 8,
            "head_dim": 64,
            "dtype": "bfloat16",
            "remat": "block",
        }
    )
    config.data = ConfigDict({"source": "npz", "path": "data/imagenet64", "noise": "gaussian", "noise_std": 0.05})
    config.train = ConfigDict({"steps": 1_000_800, "batch_size": 256, "lr": 1e-4, "min_lr": 1e-6, "warmup": 5_004})
    if variant == "tiny":
        config.flow.update({"image_size": 8, "patch_size": 4, "width": 16, "head_dim": 16, "num_blocks": 2})
        config.flow.update({"layers_per_block": 1, "dtype": "float32"})
        config.train.update({"steps": 4, "batch_size": 4, "warmup": 1})
    return config
