"""TARFlow, class-conditional ImageNet 128x128 (Gaussian noise 0.15).

    starflow train --config experiments/tarflow_imagenet128_cond.py --workdir W --config.data.path=FOLDER

FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 128, 128, 3]) and `label` (integers).
The released run: batch 768, 320 epochs, 32 GPUs.
Expected (arXiv 2412.06329): FID 5.03. 823,927,552 parameters.
`experiments/tarflow_imagenet128_cond.py:tiny` is the same experiment at a size that a laptop trains in seconds.
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
    config.name = "tarflow-imagenet128-cond"
    config.flow = ConfigDict(
        {
            "family": "tarflow",
            "channels": 3,
            "image_size": 128,
            "patch_size": 4,
            "width": 1024,
            "num_blocks": 8,
            "layers_per_block": 8,
            "head_dim": 64,
            "num_classes": 1000,
            "dtype": "bfloat16",
            "remat": "block",
        }
    )
    config.data = ConfigDict(
        {"source": "npz", "path": "data/imagenet128", "noise": "gaussian", "noise_std": 0.15, "label_drop": 0.1}
    )
    config.train = ConfigDict({"steps": 533_760, "batch_size": 768, "lr": 1e-4, "min_lr": 1e-6, "warmup": 1_668})
    if variant == "tiny":
        config.flow.update({"image_size": 8, "patch_size": 4, "width": 16, "head_dim": 16, "num_blocks": 2})
        config.flow.update({"layers_per_block": 1, "dtype": "float32"})
        config.train.update({"steps": 4, "batch_size": 4, "warmup": 1})
    return config
