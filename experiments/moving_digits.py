"""STARFlow-V on clips of moving handwritten digits: the main job of `starflow demo --video`."""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.data.moving_digits import VOCABULARY
from starflow_jax.experiments.recipes import is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" for the real one, "tiny" for tests."""
    config = ConfigDict(
        {
            "name": "moving-digits",
            "flow": {
                "family": "starflow",
                "channels": 1,
                "image_size": 16,
                "patch_size": 2,
                "width": 32,
                "deep_width": 96,
                "num_blocks": 2,
                "layers_per_block": (1, 3),
                "heads": 4,
                "head_dim": 32,
                "rope": True,
                "sos": True,
                "order": "L2R",
                "scale": "softplus",
                "soft_clip": 4.0,
                "final_norm": True,
                "text_dim": len(VOCABULARY),
                "text_length": 6,
                "cond_top_only": True,
                "temporal_causal": True,
                "shallow_local": True,
                "denoiser": {"layers": 3, "conditional": True, "look_ahead": 2, "window": None},
            },
            "text": {"vocabulary": VOCABULARY},
            "data": {
                "source": "moving_digits",
                "frames": 8,
                "clips": 50_000,
                "extend": 0.12,
                "inverted": 0.18,
                "noise": "gaussian",
                "noise_std": 0.3,
                "label_drop": 0.1,
            },
            "train": {
                "curriculum": ((2400, 2, 8), *((50, 1, 16), (75, 8, 2)) * 32),
                "steps": 6600,
                "batch_size": 2,
                "lr": 2e-3,
                "min_lr": 1e-6,
                "warmup": 200,
                "schedule": "starflow",
                "weight_decay": 1e-4,
                "denoiser_lr": 1e-3,
                "grad_clip": 1.0,
                "skip_after": None,
                "ema": 0.999,
                "steps_per_call": 20,
                "log_every": 100,
                "checkpoint_every": 500,
                "sample_every": 10_000,
            },
            "sample": {"num": 1, "guidance": 2.0, "temperature": 0.9, "solver": "sequential", "denoise": "learned"},
            "evaluate": {"draws": 2, "batch_size": 20},
            "seed": 0,
        }
    )
    if is_tiny(variant):
        config.name = "moving-digits-tiny"
        config.flow.update({"width": 20, "deep_width": 40, "layers_per_block": (1, 1), "patch_size": 4})
        config.flow.update({"heads": 1, "head_dim": 20})
        config.flow.denoiser.update({"layers": 1})
        config.data.update({"frames": 4, "clips": 200, "test_clips": 6})
        config.train.update({"curriculum": ((10, 2, 4),), "steps": 20, "warmup": 2, "ema": 0.9})
        config.train.update({"steps_per_call": 10, "log_every": 10, "checkpoint_every": 20})
    return config
