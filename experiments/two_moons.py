"""TARFlow on two moons: points of the plane, each a sequence of two tokens.

    starflow train --config experiments/two_moons.py --workdir runs/moons
    starflow evaluate --workdir runs/moons
    starflow sample --workdir runs/moons --num 1000 --out moons.png     # the density, with samples
    starflow sample --workdir runs/moons --num 1000 --out moons.csv

Hardware: any CPU; the training is 600 updates on 256 points each.
Expected: `starflow evaluate` gave -1.118 nats with a standard error of 0.019 on the 2,000 test points (seed 0).
Variants: "" without classes, "tiny" for tests; --config.flow.num_classes=2 trains with a class for each
half circle.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The experiment; ValueError for an unknown variant."""
    config = ConfigDict(
        {
            "name": "two-moons",
            "flow": {
                "family": "tarflow",
                "channels": 1,
                "image_size": (2, 1),  # two numbers: two tokens
                "width": 32,
                "num_blocks": 4,
                "layers_per_block": 1,
                "head_dim": 32,
            },
            "data": {"source": "two_moons", "noise": "none"},
            "train": {
                "steps": 600,
                "batch_size": 256,
                "lr": 5e-3,
                "min_lr": 1e-6,
                "warmup": 100,
                "weight_decay": 1e-4,
                "grad_clip": 1.0,
                "skip_after": None,
                "ema": 0.995,
                "steps_per_call": 200,
                "log_every": 200,
                "checkpoint_every": 600,
                "sample_every": 600,
            },
            "sample": {"num": 1000, "solver": "sequential"},
            "evaluate": {"batch_size": 2000},
            "seed": 0,
        }
    )
    if is_tiny(variant):
        config.name = "two-moons-tiny"
        config.flow.update({"width": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 16})
        config.train.update({"steps": 20, "warmup": 2, "lr": 1e-2, "ema": 0.9, "steps_per_call": 10, "log_every": 10})
        config.train.update({"checkpoint_every": 20, "sample_every": 20})
        config.sample.num = 16
    return config
