"""TARFlow, class-conditional AFHQ 256x256 (Gaussian noise 0.07).

    starflow train --config experiments/tarflow_afhq256.py --workdir W --config.data.path=FOLDER

FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 256, 256, 3]) and `label` (integers).
The released run: batch 256, 4,000 epochs, 8 GPUs.
Expected: FID about 13.6, as others measured with the released weights (arXiv 2505.12849). 463,481,856 parameters.
`experiments/tarflow_afhq256.py:tiny` is the same experiment at a size that a laptop trains in seconds.
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
    config.name = "tarflow-afhq256"
    config.flow = ConfigDict(
        {
            "family": "tarflow",
            "channels": 3,
            "image_size": 256,
            "patch_size": 8,
            "width": 768,
            "num_blocks": 8,
            "layers_per_block": 8,
            "head_dim": 64,
            "num_classes": 3,
            "dtype": "bfloat16",
            "remat": "block",
        }
    )
    config.data = ConfigDict(
        {"source": "npz", "path": "data/afhq256", "noise": "gaussian", "noise_std": 0.07, "label_drop": 0.1}
    )
    config.train = ConfigDict({"steps": 228_000, "batch_size": 256, "lr": 1e-4, "min_lr": 1e-6, "warmup": 57})
    if variant == "tiny":
        config.flow.update({"image_size": 8, "patch_size": 4, "width": 16, "head_dim": 16, "num_blocks": 2})
        config.flow.update({"layers_per_block": 1, "dtype": "float32"})
        config.train.update({"steps": 4, "batch_size": 4, "warmup": 1})
    return config
