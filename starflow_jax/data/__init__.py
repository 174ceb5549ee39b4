"""Data: where examples come from, how their sizes are chosen, and how they reach the training step.

- `source`: what every source of examples offers, and the one held in memory; `opening`: from a configuration to one.
- `digits`: scikit-learn's 8x8 digits with a fixed split.
- `moving_digits`: clips of moving digits with captions.
- `dequantise`: integer levels to [-1, 1] and back, and bits/dim in those units.
- `pictures`, `clips`, `latents`: sources in files; `folders`, `tars`, `tfds_records`: where pictures lie
  (`collection`); `decoding`, `captioning`: what becomes of them; `scan`, `buckets`: sizes, and what fits which.
- `mixture`: several sources as one; `readable`: a source without its bad examples; `skipped`: what was bad.
- `pipeline`: shuffled batches that resume exactly, and padded batches for evaluation; `plan`, `draw`, `loader`: which
  examples make a batch, how they become arrays, who reads ahead. `overview`: all of it for people.
"""

from starflow_jax.data.decoding.dequantise import bits_per_dim, dequantise, quantise
from starflow_jax.data.pipeline.batches import eval_batches, train_loader
from starflow_jax.data.pipeline.loader import Loader
from starflow_jax.data.sources.base import ArraySource, Source
from starflow_jax.data.sources.digits import digits
from starflow_jax.data.sources.mixture import Component, Mixture
from starflow_jax.data.sources.moving_digits import MovingDigits

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
