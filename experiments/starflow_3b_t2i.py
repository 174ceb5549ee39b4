"""STARFlow 3B, text to image at 256x256 (arXiv 2506.06276): the released text-to-image configuration.

    starflow encode --config experiments/starflow_3b_t2i.py --config.data.source=tars --config.data.path=SHARDS \\
        --autoencoder sd-vae --text-encoder flan-t5-xl --out latents/train
    starflow encode --config experiments/starflow_3b_t2i.py --config.data.source=tars --config.data.path=SHARDS \\
        --autoencoder sd-vae --text-encoder flan-t5-xl --split test --out latents/test
    starflow train --config experiments/starflow_3b_t2i.py --workdir W --config.data.path=latents
    starflow evaluate --workdir W --metrics fid --features pt_inception-2015-12-05-6726825d.pth \\
        --num-samples 30000 --guidance 3.6 --denoise score --decoder sd-vae --text-encoder flan-t5-xl \\
        --caption captions-1.txt --caption captions-2.txt --real COCO/val2014

Data: images with captions (in the paper 400 M, in-house and public), encoded by SD's autoencoder to latents
[32, 32, 4], with the states of Flan-T5-XL, 128 tokens; one caption in ten is dropped. Noise of standard deviation 0.3
is added in training.
Model: "24(6)-3072" of the paper: a deep block of 24 layers and five shallow blocks of 2, all 3,072 wide.
3,858,281,544 parameters.
Hardware: 64 H100, about two weeks, at batch 512 in the paper; this file follows the released recipe, which has batch
1,024 and learning rate 6.4e-5.
Published: COCO FID-30K 9.1 (zero-shot), GenEval 0.56.
Open: the guidance weight of these figures is not known; 3.6 is that of the released sampler. The two caption files hold
the 30,000 captions, one per line (a file may have 1 MiB); their states are kept in memory, 1 MiB per caption.
SHARDS is a folder with shards in train/ and test/.
`experiments/starflow_3b_t2i.py:tiny` is the same model at a size for tests.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import STARFLOW, is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    config = ConfigDict()
    config.name = "starflow-3b-t2i-256"
    config.flow = ConfigDict(
        {
            **STARFLOW,
            "channels": 4,
            "image_size": 32,
            "patch_size": 1,
            "width": 3072,
            "num_blocks": 6,
            "layers_per_block": (2, 2, 2, 2, 2, 24),
            "head_dim": 64,
            "text_dim": 2048,
            "text_length": 128,
            "dtype": "bfloat16",
            "remat": "block",
        }
    )
    config.data = ConfigDict(
        {
            "source": "latents",
            "path": "data/latents256",
            "noise": "gaussian",
            "noise_std": 0.3,
            "label_drop": 0.1,
            "threads": 8,
        }
    )
    config.train = ConfigDict(
        {
            "steps": 400_000,
            "batch_size": 1024,
            "lr": 6.4e-5,
            "min_lr": 1e-6,
            "warmup": 1000,
            "schedule": "starflow",
            "latent_norm": 1e-4,
            "grad_clip": 1.0,
            "noise_weight": True,
        }
    )
    # Parameters and optimizer moments are sharded over all devices; docs/plan.md compares layouts.
    config.mesh = ConfigDict({"data": 1, "fsdp": -1})
    config.sample = ConfigDict({"num": 16, "guidance": 3.6, "solver": "jacobi", "denoise": "score"})
    if is_tiny(variant):
        config.flow.update({"image_size": 4, "width": 20, "head_dim": 20, "num_blocks": 2, "layers_per_block": (1, 1)})
        config.flow.update({"text_dim": 8, "text_length": 4, "dtype": "float32", "remat": "none"})
        config.train.update({"steps": 10, "batch_size": 4, "warmup": 1})
    return config
