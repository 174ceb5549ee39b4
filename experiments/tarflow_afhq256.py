"""TARFlow, class-conditional AFHQ 256x256 (Gaussian noise 0.07).

    starflow train --config experiments/tarflow_afhq256.py --workdir W --config.data.path=FOLDER

FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 256, 256, 3]) and `label` (integers).
The released run: batch 256, 4,000 epochs, 8 GPUs.
Expected: FID about 13.6, as others measured with the released weights (arXiv 2505.12849). 463,481,856 parameters.
`experiments/tarflow_afhq256.py:tiny` is the same experiment at a size that a laptop trains in seconds.
"""

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import tarflow


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    return tarflow(
        variant,
        name="tarflow-afhq256",
        flow={"image_size": 256, "patch_size": 8, "width": 768, "num_classes": 3, "dtype": "bfloat16"},
        data={"path": "data/afhq256", "noise": "gaussian", "noise_std": 0.07, "label_drop": 0.1},
        batch_size=256,
        steps=228_000,
    )
