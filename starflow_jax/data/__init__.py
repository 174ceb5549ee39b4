"""Data: where examples come from, how their sizes are chosen, and how they reach the training step.

- `source`: what every source of examples offers, and the one held in memory.
- `digits`: scikit-learn's 8x8 digits with a fixed split.
- `moving_digits`: clips of moving digits with captions.
- `dequantise`: integer levels to [-1, 1] and back, and bits/dim in those units.
- `buckets`: picture sizes for aspect ratios.
- `pipeline`: shuffled batches that resume exactly, and padded batches for evaluation.
"""

from starflow_jax.data.dequantise import bits_per_dim, dequantise, quantise
from starflow_jax.data.digits import digits
from starflow_jax.data.loader import Loader
from starflow_jax.data.mixture import Component, Mixture
from starflow_jax.data.moving_digits import MovingDigits
from starflow_jax.data.pipeline import eval_batches, train_loader
from starflow_jax.data.source import ArraySource, Source

__all__ = [
    "ArraySource",
    "Component",
    "Loader",
    "Mixture",
    "MovingDigits",
    "Source",
    "bits_per_dim",
    "dequantise",
    "digits",
    "eval_batches",
    "quantise",
    "train_loader",
]
