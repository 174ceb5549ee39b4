"""TARFlow, class-conditional AFHQ 256x256 (Gaussian noise 0.07).

    starflow train --config experiments/tarflow_afhq256.py --workdir W --config.data.path=FOLDER
    starflow evaluate --workdir W --metrics fid --features pt_inception-2015-12-05-6726825d.pth \\
        --num-samples 50000 --guidance 1,1.5,2,2.5,3 --denoise score

Data: AFHQ, about 15,000 training images of cats, dogs and wild animals, resized to 256x256; one label in ten is
dropped. FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 256, 256, 3]) and `label` (integers); or the
images themselves in train/CLASS/ and test/CLASS/, with --config.data.source=images.
Model: patches of 8, 8 blocks of 8 layers, 768 wide. 463,481,856 parameters.
Hardware: 8 GPUs (in the paper A100, at most 14 days per run), bfloat16; batch 256, 4,000 epochs, AdamW 1e-4.
Published: no FID in the paper (arXiv 2412.06329); 13.6 was measured with its released weights (arXiv 2505.12849).
Open: neither the guidance weight nor the number of samples of 13.6 is known. The weights above are a first sweep.
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
