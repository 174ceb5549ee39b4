"""TARFlow, unconditional ImageNet 64x64, for samples (Gaussian noise 0.05).

    starflow train --config experiments/tarflow_imagenet64_uncond.py --workdir W --config.data.path=FOLDER
    starflow evaluate --workdir W --metrics fid --features pt_inception-2015-12-05-6726825d.pth \\
        --num-samples 50000 --guidance 0.1,0.2,0.5,1 --attention-temperature 1.5 --denoise score

Data: ImageNet-1k, 1,281,167 training images, centre-cropped and resized to 64x64. FOLDER holds train.npz and
test.npz, each with `image` (uint8 [n, 64, 64, 3]) and `label` (integers, which this flow does not read); or the
images themselves in train/CLASS/ and test/CLASS/, with --config.data.source=images.
Model: patches of 2, 8 blocks of 8 layers, 768 wide. 460,142,784 parameters.
Hardware: 8 GPUs (in the paper A100, at most 14 days per run), bfloat16; batch 256, 200 epochs, AdamW 1e-4.
Published (arXiv 2412.06329): FID 18.42, guided away from a prediction at another attention temperature, with the noise
removed by the score; 14.67 with weights trained by others (arXiv 2505.12849).
Open: neither the guidance weight nor the attention temperature of 18.42 is known. The values above are a first sweep,
not those of the paper; without them the command evaluates unguided samples.
`experiments/tarflow_imagenet64_uncond.py:tiny` is the same experiment at a size that a laptop trains in seconds.
"""

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import tarflow


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    return tarflow(
        variant,
        name="tarflow-imagenet64-uncond",
        flow={"image_size": 64, "patch_size": 2, "width": 768, "dtype": "bfloat16"},
        data={"path": "data/imagenet64", "noise": "gaussian", "noise_std": 0.05},
        batch_size=256,
        steps=1_000_800,
    )
