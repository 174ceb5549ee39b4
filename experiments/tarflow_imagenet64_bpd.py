"""TARFlow, unconditional ImageNet 64x64, for likelihood (uniform dequantisation, float32).

    starflow train --config experiments/tarflow_imagenet64_bpd.py --workdir W --config.data.path=FOLDER
    starflow evaluate --workdir W

Data: ImageNet resized to 64x64, 1,281,149 training images (of arXiv 1601.06759; bits/dim are comparable only on these
images). FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 64, 64, 3]) and `label` (integers, which this
flow does not read).
Model: patches of 2, 8 blocks of 8 layers, 768 wide. 460,142,784 parameters.
Hardware: 16 GPUs (in the paper A100, at most 14 days per run), float32; batch 256, 100 epochs, AdamW 1e-4.
Published (arXiv 2412.06329): 2.99 bits/dim.
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
