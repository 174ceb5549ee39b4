"""Two interleaved half circles with noise, a test of densities in the plane (scikit-learn's `make_moons`)."""

from __future__ import annotations

import numpy as np

from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.vectors import VectorSource

SIZES = {"train": 4000, "test": 2000}
NOISE = 0.1


@SOURCES.register("two_moons", vectors=True, levels=0)
def open_two_moons(config: SourceConfig, request: SourceRequest) -> VectorSource:
    """Points of the plane as vectors of two numbers; the label says which half circle a point belongs to."""
    from sklearn.datasets import make_moons  # its import takes two seconds

    seed = list(SIZES).index(request.split)
    points, labels = make_moons(SIZES[request.split], noise=NOISE, random_state=seed)
    return VectorSource(f"two_moons-{request.split}", points[..., None].astype(np.float32), labels.astype(np.int32), 2)
