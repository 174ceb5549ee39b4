"""STARFlow 3B, text to image at 256x256 (arXiv 2506.06276): the released text-to-image configuration.

    from starflow_jax.config import load_config
    from starflow_jax.flows.parameters import abstract

    definition, params = abstract(load_config("experiments/starflow_3b_t2i.py").flow)

Data are SD-VAE latents [32, 32, 4] with the states of Flan-T5-XL, 128 tokens, as `starflow encode --autoencoder sd-vae
--text-encoder flan-t5-xl` writes them. The paper's run took about two
weeks on 64 H100 at batch 512, 400 M images; the released recipe says batch 1,024. Expected: COCO FID-30K 9.1.
3,858,281,544 parameters. `experiments/starflow_3b_t2i.py:tiny` is the same model at a size for tests.
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
    # Parameters and moments in as many parts as there are devices; docs/plan.md says what is best on which.
    config.mesh = ConfigDict({"data": 1, "fsdp": -1})
    config.sample = ConfigDict({"num": 16, "guidance": 3.6, "solver": "jacobi", "denoise": "score"})
    if is_tiny(variant):
        config.flow.update(
            {"image_size": 4, "width": 40, "head_dim": 20, "num_blocks": 3, "layers_per_block": (1, 1, 2)}
        )
        config.flow.update({"text_dim": 8, "text_length": 4, "dtype": "float32"})
        config.train.update({"steps": 4, "batch_size": 4, "warmup": 1})
    return config
