"""STARFlow-V 7B, 480p video at 16 frames/s, 81 frames (arXiv 2511.20462): the released video configuration.

    from starflow_jax.config import load_config
    from starflow_jax.flows.parameters import abstract

    definition, params = abstract(load_config("experiments/starflow_v_7b.py").flow)

Data are Wan2.2 VAE latents, 48 channels, 21 latent frames of 22 x 40 (16:9 of a 640 x 640 area, stride 16), with the
states of Flan-T5-XL, 256 tokens, as `starflow encode --autoencoder Wan2.2_VAE.pth:0.6 --text-encoder flan-t5-xl`
writes them; captions say the rate and the noise level. As released, batches are of 192 videos or, one in five, of
1,536 images (secondary_ratio 0.2), and a quarter of the clips begin at their second latent frame, for which one more
is stored. The training time is not published.
6,890,096,528 parameters, 912,884,784 of them the denoiser's. `:tiny` is the same model at a size for tests.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import STARFLOW, is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" as released, "tiny" for tests."""
    tiny = is_tiny(variant)
    config = ConfigDict()
    config.name = "starflow-v-7b-480p"
    config.flow = ConfigDict(
        {
            **STARFLOW,
            "channels": 48,
            "image_size": 40,
            "patch_size": 1,
            "width": 3072,
            "deep_width": 4096,
            "num_blocks": 6,
            "layers_per_block": (2, 2, 2, 2, 2, 24),
            "head_dim": 64,
            "pt_seq_len": 32,
            "text_dim": 2048,
            "text_length": 256,
            "temporal_causal": True,
            "shallow_local": True,
            "denoiser": {"layers": 8, "conditional": True, "look_ahead": 2, "window": 10},
            "dtype": "bfloat16",
            "remat": "block",
        }
    )
    config.data = ConfigDict(
        {
            "source": "mixture",
            "frames": 21,
            "mixture": (
                {
                    "source": "latents", "path": "data/video_latents480", "frames": 21, "drop_first": 0.25,
                    "weight": 0.8, "fps": 16.0, "captions": {"fps": True, "noise_level": True},
                },
                {"source": "latents", "path": "data/latents480", "weight": 0.2, "batch_size": 4 if tiny else 1536,
                 "captions": {"fps": True, "noise_level": True}},
            ),
            "noise": "gaussian",
            "noise_std": 0.5,
            "label_drop": 0.1,
            "threads": 8,
        }
    )  # fmt: skip
    config.train = ConfigDict(
        {
            "steps": 100_000,
            "batch_size": 192,
            "lr": 5e-5,
            "min_lr": 1e-6,
            "warmup": 1000,
            "schedule": "starflow",
            "grad_clip": 1.0,
            "noise_weight": True,
        }
    )
    # Parameters and moments in as many parts as there are devices; docs/plan.md says what is best on which.
    config.mesh = ConfigDict({"data": 1, "fsdp": -1})
    config.sample = ConfigDict({"num": 1, "guidance": 3.5, "solver": "jacobi", "denoise": "learned"})
    if tiny:
        config.flow.update({"channels": 4, "image_size": 4, "width": 20, "deep_width": 40, "head_dim": 20})
        config.flow.update({"num_blocks": 3, "layers_per_block": (1, 1, 2), "text_dim": 8, "text_length": 4})
        config.flow.update({"pt_seq_len": 3, "dtype": "float32"})
        config.flow.denoiser.update({"layers": 2, "window": 2})
        config.train.update({"steps": 4, "batch_size": 4, "warmup": 1})
    return config
