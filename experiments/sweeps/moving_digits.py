"""Checkpoints of the moving-digits experiment: held-out clips frame by frame, with and without their captions.

    starflow train --config experiments/moving_digits.py --workdir runs/moving
    starflow sweep --config experiments/sweeps/moving_digits.py --out sweeps/moving

Hardware: any CPU.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The sweep."""
    return ConfigDict(
        {
            "name": "moving-digits",
            "runs": ({"workdir": "runs/moving", "steps": "all"},),
            "data": (
                {"name": "test clips", "split": "test", "count": 50},
                {"name": "upside-down", "transform": "upside-down", "count": 50, "role": "out"},
                {"name": "inverted", "transform": "inverted", "count": 50, "role": "out"},
            ),
            "noise": ("trained",),
            "conditions": ("true", "dropped", "shuffled"),
            "draws": 2,
            "batch_size": 20,
        }
    )
