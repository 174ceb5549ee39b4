"""TARFlow, class-conditional ImageNet 128x128 (Gaussian noise 0.15).

    starflow train --config experiments/tarflow_imagenet128_cond.py --workdir W --config.data.path=FOLDER
    starflow evaluate --workdir W --metrics fid --features pt_inception-2015-12-05-6726825d.pth \\
        --num-samples 50000 --guidance 1,1.5,2,2.5,3 --denoise score

Data: ImageNet-1k, 1,281,167 training images, centre-cropped and resized to 128x128; one label in ten is dropped.
FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 128, 128, 3]) and `label` (integers), 63 GB that are
read into memory; or the images themselves in train/CLASS/ and test/CLASS/, with --config.data.source=images.
Model: patches of 4, 8 blocks of 8 layers, 1,024 wide. 823,927,552 parameters.
Hardware: 32 GPUs (in the paper A100, at most 14 days per run), bfloat16; batch 768, 320 epochs, AdamW 1e-4.
Published (arXiv 2412.06329): FID 5.03, with the noise removed by the score; 5.06 with weights trained by others
(arXiv 2505.12849).
Open: the guidance weight of 5.03 is not known. The weights above are a first sweep, not those of the paper.
`experiments/tarflow_imagenet128_cond.py:tiny` is the same experiment at a size that a laptop trains in seconds.
"""

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import tarflow


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    return tarflow(
        variant,
        name="tarflow-imagenet128-cond",
        flow={"image_size": 128, "patch_size": 4, "width": 1024, "num_classes": 1000, "dtype": "bfloat16"},
        data={"path": "data/imagenet128", "noise": "gaussian", "noise_std": 0.15, "label_drop": 0.1},
        batch_size=768,
        steps=533_760,
    )
