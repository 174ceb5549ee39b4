"""Checkpoints of the moving-digits experiment: held-out clips frame by frame, with and without their captions.

    starflow train --config experiments/moving_digits.py --workdir runs/moving
    starflow sweep --config experiments/sweeps/moving_digits.py --out sweeps/moving

Hardware: any CPU; a cell of 12 clips takes about 2 seconds on one core.

Expected at the last step on the first 12 test clips (seed 0, 2 noise samples): 3.478 bits/dim with their captions,
3.494 without captions, 3.525 with those of other clips; 3.555 upside down, 8.851 in inverted colours.
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
