"""TARFlow, unconditional ImageNet 64x64, for likelihood (uniform dequantisation, float32).

    starflow train --config experiments/tarflow_imagenet64_bpd.py --workdir W --config.data.path=FOLDER

FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 64, 64, 3]) and `label` (integers).
The released run: batch 256, 100 epochs, 16 GPUs, float32.
Expected (arXiv 2412.06329): 2.99 bits/dim. 460,142,784 parameters.
`experiments/tarflow_imagenet64_bpd.py:tiny` is the same experiment at a size that a laptop trains in seconds.
"""

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import tarflow


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    return tarflow(
        variant,
        name="tarflow-imagenet64-bpd",
        flow={"image_size": 64, "patch_size": 2, "width": 768, "dtype": "float32"},
        data={"path": "data/imagenet64", "noise": "uniform"},
        batch_size=256,
        steps=500_400,
    )
