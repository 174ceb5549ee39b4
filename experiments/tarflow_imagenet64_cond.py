"""TARFlow, class-conditional ImageNet 64x64 (Gaussian noise 0.05).

    starflow train --config experiments/tarflow_imagenet64_cond.py --workdir W --config.data.path=FOLDER
    starflow evaluate --workdir W --metrics fid --features pt_inception-2015-12-05-6726825d.pth \\
        --num-samples 50000 --guidance 2 --denoise score

Data: ImageNet-1k, 1,281,167 training images, centre-cropped and resized to 64x64; one label in ten is dropped.
FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 64, 64, 3]) and `label` (integers); or the images
themselves in train/CLASS/ and test/CLASS/, with --config.data.source=images.
Model: patches of 2, 8 blocks of 8 layers, 768 wide. 466,286,784 parameters.
Hardware: 8 GPUs (in the paper A100, at most 14 days per run), bfloat16; batch 256, 200 epochs, AdamW 1e-4.
Published (arXiv 2412.06329): FID 5.7 at guidance 2 (the released command evaluates at 2.3), with the noise removed by
the score; 4.42 with weights trained by others (arXiv 2505.12849).
`experiments/tarflow_imagenet64_cond.py:tiny` is the same experiment at a size that a laptop trains in seconds.
"""

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import tarflow


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    return tarflow(
        variant,
        name="tarflow-imagenet64-cond",
        flow={"image_size": 64, "patch_size": 2, "width": 768, "num_classes": 1000, "dtype": "bfloat16"},
        data={"path": "data/imagenet64", "noise": "gaussian", "noise_std": 0.05, "label_drop": 0.1},
        batch_size=256,
        steps=1_000_800,
    )
