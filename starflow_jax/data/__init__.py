"""Data: sources of examples, decoding of files, and batches.

- `sources`: one file for each source, registered in `SOURCES`; `base` is their interface, `source_opening` opens the
  source that a configuration names.
- `decoding`: image files to pixels, aspect-ratio buckets, dequantisation, and files that cannot be read.
- `pipeline`: shuffled batches that resume exactly, padded batches for evaluation, and digests of the data.
- `preparation`: copies of images as sharded ArrayRecord with a manifest; an interruption costs one shard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starflow_jax.core.deferred_names import deferred_names

if TYPE_CHECKING:
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

__getattr__ = deferred_names(
    __name__,
    {
        "bits_per_dim": ".decoding.dequantise",
        "dequantise": ".decoding.dequantise",
        "quantise": ".decoding.dequantise",
        "eval_batches": ".pipeline.batches",
        "train_loader": ".pipeline.batches",
        "Loader": ".pipeline.loader",
        "ArraySource": ".sources.base",
        "Source": ".sources.base",
        "digits": ".sources.digits",
        "Component": ".sources.mixture",
        "Mixture": ".sources.mixture",
        "MovingDigits": ".sources.moving_digits",
    },
)
