"""STARFlow 1.4B, class-conditional ImageNet 256x256 (arXiv 2506.06276).

    starflow encode --config experiments/starflow_imagenet256_cond.py --config.data.source=images \\
        --config.data.path=ILSVRC2012 --autoencoder sd-vae --out latents/train
    starflow encode --config experiments/starflow_imagenet256_cond.py --config.data.source=images \\
        --config.data.path=ILSVRC2012 --autoencoder sd-vae --split test --out latents/test
    starflow train --config experiments/starflow_imagenet256_cond.py --workdir W --config.data.path=latents
    starflow evaluate --workdir W --metrics fid --features pt_inception-2015-12-05-6726825d.pth \\
        --num-samples 50000 --guidance 1,1.5,2,2.5,3 --denoise score --decoder sd-vae --real ILSVRC2012/val

Data: ImageNet-1k, 1,281,167 training images in train/CLASS/ and 50,000 held-out images in val/CLASS/, centre-cropped
to 256x256 and encoded by SD's autoencoder to latents [32, 32, 4]; noise of standard deviation 0.3 is added in training.
The text is the class, the index of its folder in the order of names: one token, a one-hot row of 1,000; one in ten is
dropped.
Model: "18(6)-2048" of the paper: a deep block of 18 layers and five shallow blocks of 2, all 2,048 wide.
1,412,253,768 parameters.
Hardware: the paper's 1.4B models were trained on 32 H100 with batch 512 (about two weeks on text to image); AdamW,
cosine decay from 1e-4 to 1e-6. The number of updates is derived from the 400 M training images that the paper states.
Published: FID 2.40 with a decoder fine-tuned on noisy latents (`starflow finetune-decoder`, 200,000 updates of 64),
2.96 with the noise removed by the score (`sample --denoise score`); 35 s for 16 images (guided, sequential).
Open: the guidance weight of these figures is not known. The weights above are a first sweep, and the weight below is a
starting value, not that of the paper. To measure 2.40, give the fine-tuned decoder's folder as --decoder and use
--denoise none.
`experiments/starflow_imagenet256_cond.py:tiny` is the same experiment at a size for tests.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import STARFLOW, is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as published, "tiny" for tests."""
    config = ConfigDict()
    config.name = "starflow-imagenet256-cond"
    config.flow = ConfigDict(
        {
            **STARFLOW,
            "channels": 4,
            "image_size": 32,
            "patch_size": 1,
            "width": 2048,
            "num_blocks": 6,
            "layers_per_block": (2, 2, 2, 2, 2, 18),
            "head_dim": 64,
            "text_dim": 1000,
            "text_length": 1,
            "dtype": "bfloat16",
            "remat": "block",
        }
    )
    config.data = ConfigDict(
        {
            "source": "latents",
            "path": "data/imagenet256_latents",
            "noise": "gaussian",
            "noise_std": 0.3,
            "label_drop": 0.1,
            "threads": 8,
        }
    )
    config.train = ConfigDict(
        {
            "steps": 781_250,
            "batch_size": 512,
            "lr": 1e-4,
            "min_lr": 1e-6,
            "warmup": 1000,
            "schedule": "starflow",
            "latent_norm": 1e-4,
            "grad_clip": 1.0,
        }
    )
    # Parameters and optimizer moments are sharded over all devices; docs/plan.md compares layouts.
    config.mesh = ConfigDict({"data": 1, "fsdp": -1})
    config.sample = ConfigDict({"num": 16, "guidance": 2.0, "solver": "jacobi", "denoise": "score"})
    if is_tiny(variant):
        config.flow.update({"image_size": 4, "width": 20, "head_dim": 20, "num_blocks": 2, "layers_per_block": (1, 1)})
        config.flow.update({"text_dim": 10, "dtype": "float32", "remat": "none"})
        config.train.update({"steps": 10, "batch_size": 4, "warmup": 1})
        config.sample.num = 4
    return config
