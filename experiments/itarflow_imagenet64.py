"""iTARFlow, class-conditional ImageNet 64x64: a noise-conditioned TARFlow with iterative denoising.

    starflow train --config experiments/itarflow_imagenet64.py --workdir W --config.data.path=FOLDER
    starflow evaluate --workdir W --metrics fid --features pt_inception-2015-12-05-6726825d.pth \\
        --num-samples 50000 --guidance 2.1 --annealed-guidance --denoise iterative --levels 30

Data: ImageNet-1k, 1,281,167 training images, centre-cropped and resized to 64x64;
one label in ten is dropped.
FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 64, 64, 3]) and `label` (integers); or the images
themselves in train/CLASS/ and test/CLASS/, with --config.data.source=images; --config.data.flip=0.5 then flips them at
random, as the paper does.
Model: patches of 2, 4 blocks of 4, 4, 4 and 24 layers, 1,280 wide, noise levels 0.01 to 0.3. 771,394,656 parameters.
Training: bfloat16; batch 512, 300 epochs, AdamW 1e-5 to 1e-4 over one epoch, then a cosine to 1e-5; the noise level of
an example is uniform and weighs its loss.
Published (arXiv 2604.20041, quoted from a summary, not checked against the paper): FID 1.68.
The guidance weight is annealed along the sequence. Open: whether the published FIDs are of the ODE or of the SDE step.
This project has not trained the experiment at this size.
`experiments/itarflow_imagenet64.py:tiny` is the same experiment at a size that a laptop trains in seconds.
"""

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import itarflow


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    return itarflow(
        variant,
        name="itarflow-imagenet64",
        image_size=64,
        patch_size=2,
        width=1280,
        highest_level=0.3,
        epochs=300,
        guidance=2.1,
    )
