"""A still-image STARFlow on digits of 24x24 pixels with one token per pixel: 576 tokens for the solvers' benchmark.

    starflow train --config experiments/digits_tokens.py --workdir /tmp/digits-tokens
    starflow train --config experiments/digits_tokens.py:tiny --workdir /tmp/tiny      # seconds, for tests

The images are scikit-learn's 8x8 digits, enlarged three times; the class is the text, one token of ten one-hot
channels. The flow has a deep block and two shallow blocks that read all 576 tokens, and noise of 0.3 as in the paper.
It serves to measure inversion (3 x 576 consecutive network evaluations), not to reach a good likelihood.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import STARFLOW, is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; variant: "" for the full one, "tiny" for tests."""
    config = ConfigDict(
        {
            "name": "digits-tokens",
            "flow": {
                **STARFLOW,
                "channels": 1,
                "image_size": 24,
                "patch_size": 1,
                "width": 32,
                "deep_width": 64,
                "num_blocks": 3,
                "layers_per_block": (1, 1, 2),
                "head_dim": 32,
                "text_dim": 10,
                "text_length": 1,
            },
            "data": {"source": "digits", "noise": "gaussian", "noise_std": 0.3, "label_drop": 0.1},
            "train": {
                "steps": 1000,
                "batch_size": 8,
                "lr": 3e-3,
                "min_lr": 1e-6,
                "warmup": 100,
                "schedule": "starflow",
                "weight_decay": 1e-4,
                "grad_clip": 1.0,
                "skip_after": None,
                "ema": 0.995,
                "steps_per_call": 20,
                "log_every": 50,
                "checkpoint_every": 250,
                "sample_every": 10_000,
            },
            "sample": {"num": 1, "guidance": 1.0, "solver": "sequential"},
            "evaluate": {"draws": 2, "batch_size": 30},
            "seed": 0,
        }
    )
    if is_tiny(variant):
        config.name = "digits-tokens-tiny"
        config.flow.update({"image_size": 16, "patch_size": 4, "deep_width": 32, "layers_per_block": (1, 1, 1)})
        config.train.update({"steps": 20, "warmup": 2, "steps_per_call": 10, "log_every": 10, "checkpoint_every": 20})
        config.train.update({"ema": 0.9})
    return config
