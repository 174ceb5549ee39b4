"""A flow on your own table of numbers: its size and its standardisation are chosen from the file.

    starflow train --config experiments/own_vectors.py --config.data.path=table.csv --workdir runs/table
    starflow evaluate --workdir runs/table
    starflow sample --workdir runs/table --num 1000 --out samples.csv

Data: a row for each vector, in .csv, .npy or .npz (docs/how_to/vectors.md). A column called `label` holds classes, and
the flow is then conditional. Every tenth row is held out, unless the file or the folder separates the splits.
Model: every number is a token. A map in front of the flow, whose Jacobian counts, standardises the numbers, so that
likelihoods and samples are in the units of the file. Values set by --config.NAME=VALUE are kept.
Hardware: a CPU for tens of numbers, one GPU for hundreds.
`experiments/own_vectors.py:tiny` trains ten updates of a tiny flow on the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from starflow_jax.core.config import DataConfig
from starflow_jax.core.storage.copies import local_path
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.experiments.recipes import is_tiny

# Columns that vary less than this are not scaled.
_LEAST_DEVIATION = 1e-6


def get_config(variant: str = "") -> ConfigDict:
    """The fields that do not depend on the file; variant: "" for the full experiment, "tiny" for tests."""
    config = ConfigDict(
        {
            "name": "vectors",
            "flow": {"family": "tarflow", "width": 64, "num_blocks": 6, "layers_per_block": 2, "head_dim": 32},
            "data": {"source": "vectors", "noise": "none"},
            "train": {
                "steps": 5000,
                "batch_size": 256,
                "lr": 1e-3,
                "min_lr": 1e-6,
                "warmup": 100,
                "weight_decay": 1e-4,
                "grad_clip": 1.0,
                "skip_after": None,
                "ema": 0.995,
                "steps_per_call": 50,
                "log_every": 100,
                "checkpoint_every": 1000,
                "sample_every": 5000,
                "evaluate_every": 1000,
            },
            "sample": {"num": 1000, "solver": "sequential"},
            "evaluate": {"batch_size": 1024},
        }
    )
    if is_tiny(variant):
        config.flow.update({"width": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 16})
        config.train.update({"steps": 10, "batch_size": 8, "warmup": 1, "steps_per_call": 5, "log_every": 5})
    return config


def complete(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Chooses the size of the flow and its standardisation from the training split, where they are not set.

    Raises:
      ValueError: no file is given, or it cannot be read.
    """
    path = values["data"].get("path")
    if path is None:
        raise ValueError("data.path is missing; --config.data.path=FILE names the table")
    data = DataConfig(source="vectors", path=str(local_path(path)), noise="none")
    source = open_source(data, "train")
    examples = [source[index] for index in range(len(source))]
    x = np.stack([example["image"] for example in examples])
    _, tokens, _, channels = x.shape
    lengths = np.asarray([example.get("length", tokens) for example in examples])
    shift, scale = _mean_and_deviation(x[:, :, 0], lengths)
    standardised = {
        "kind": "affine",
        "shift": tuple(float(mean) for mean in shift.reshape(-1)),
        "scale": tuple(float(deviation) for deviation in scale.reshape(-1)),
    }
    chosen = {
        "channels": channels,
        "image_size": (tokens, 1),
        "num_classes": source.num_classes if source.num_classes > 1 else 0,
    }
    if values["data"].get("noise") == "none":
        chosen["pixel_map"] = standardised
    return {**values, "flow": {**chosen, **values["flow"]}}


def _mean_and_deviation(x: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the deviation of every number [n, d] over the vectors [N, n, d] in which it is no padding.

    Numbers that are padding in every vector get 0 and 1, and numbers that do not vary the deviation 1.
    """
    padding = np.broadcast_to((np.arange(x.shape[1]) >= lengths[:, None])[..., None], x.shape)
    real = np.ma.masked_array(x, padding, dtype=np.float64)
    shift, scale = real.mean(axis=0).filled(0.0), real.std(axis=0).filled(1.0)
    return shift, np.where(scale > _LEAST_DEVIATION, scale, 1.0)
