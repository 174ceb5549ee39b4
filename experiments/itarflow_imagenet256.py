"""iTARFlow, class-conditional ImageNet 256x256: a noise-conditioned TARFlow with iterative denoising.

    starflow train --config experiments/itarflow_imagenet256.py --workdir W --config.data.path=FOLDER
    starflow evaluate --workdir W --metrics fid --features pt_inception-2015-12-05-6726825d.pth \\
        --num-samples 50000 --guidance 4.2 --annealed-guidance --denoise iterative --levels 70

Data: ImageNet-1k, 1,281,167 training images, centre-cropped and resized to 256x256;
no label is dropped, as in the released command.
FOLDER holds train.npz and test.npz, each with `image` (uint8 [n, 256, 256, 3]) and `label` (integers); or the images
themselves in train/CLASS/ and test/CLASS/, with --config.data.source=images; --config.data.flip=0.5 then flips them at
random, as the paper does.
Model: patches of 8, 4 blocks of 4, 4, 4 and 24 layers, 2,176 wide, noise levels 0.01 to 0.7. 2,220,731,392 parameters.
Training: bfloat16; batch 512, 600 epochs, AdamW 1e-5 to 1e-4 over one epoch, then a cosine to 1e-5; the noise level of
an example is uniform and weighs its loss.
Published (arXiv 2604.20041, quoted from a summary, not checked against the paper): FIDs from 1.68 at 64 pixels to 3.32
over the three sizes.
The guidance weight is annealed along the sequence. Open: whether the published FIDs are of the ODE or of the SDE step.
This project has not trained the experiment at this size.
`experiments/itarflow_imagenet256.py:tiny` is the same experiment at a size that a laptop trains in seconds.
"""

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import itarflow


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    return itarflow(
        variant,
        name="itarflow-imagenet256",
        image_size=256,
        patch_size=8,
        width=2176,
        highest_level=0.7,
        epochs=600,
        guidance=4.2,
        label_drop=0.0,
    )
