"""Checkpoints of the digits experiment on held-out digits, on training digits, and on images of other kinds.

    starflow train --config experiments/digits.py --workdir runs/digits
    starflow sweep --config experiments/sweeps/digits.py --out sweeps/digits
    starflow sweep --config experiments/sweeps/digits.py --workdir runs/other --out sweeps/other

Hardware: any CPU; 8 checkpoints took 1 min 50 s on two cores that were also running other jobs.

Expected at the last step (seed 0, 4 noise samples): 2.057 bits/dim on test digits with their class, 2.270 without a
class, 2.639 with a wrong class; 1.978 on training digits; AUROC of log p(x) 1.000 against inverted digits and mixed
pixels, 0.950 against photographs, 0.794 against upside-down digits (without a class).

Flows that were trained on uniform noise have no useful density under Gaussian noise (docs/sweeps.md); for other flows,
use `--config.noise="(0.05, 0.1, 0.2)"`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from starflow_jax.experiments.recipes import is_tiny


def get_config(variant: str = "") -> ConfigDict:
    """The sweep.

    Args:
      variant: "" for the full sweep, "tiny" for one that takes seconds.

    Raises:
      ValueError: an unknown variant.
    """
    outside = [
        {"name": "upside-down", "transform": "upside-down", "role": "out"},
        {"name": "inverted", "transform": "inverted", "role": "out"},
        {"name": "mixed pixels", "transform": "mixed", "role": "out"},
        # Photographs have no class among the digits.
        {"name": "photographs", "source": {"source": "photos"}, "levels": 17, "count": 360, "role": "out"}
        | {"conditions": ("dropped",)},
    ]
    config = ConfigDict(
        {
            "name": "digits",
            "runs": ({"workdir": "runs/digits", "steps": "all"},),
            "data": (
                {"name": "test digits", "split": "test"},
                {"name": "training digits", "split": "train", "count": 360},
                *outside,
            ),
            "noise": ("uniform",),
            "conditions": ("true", "dropped", "shuffled"),
            "draws": 4,
            "batch_size": 512,
        }
    )
    if is_tiny(variant):
        config.data = ({"name": "test digits", "count": 24}, {"count": 24, **outside[1]})
        config.noise, config.conditions, config.draws, config.batch_size = ("uniform", 0.1), ("true", "dropped"), 2, 32
    return config
