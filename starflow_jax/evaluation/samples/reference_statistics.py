"""Statistics of the features of real images, computed once for a source and a network and stored in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from starflow_jax.data import Source
from starflow_jax.data.pipeline.content_digest import contents_digest
from starflow_jax.evaluation.samples.features.class_sums import SPLITS
from starflow_jax.evaluation.samples.features.feature_network import FeatureNetwork, Features, extract_features
from starflow_jax.evaluation.samples.features.feature_statistics import (
    MAX_VECTORS,
    FeatureStatistics,
    feature_statistics,
    read_statistics,
    write_statistics,
)
from starflow_jax.training.checkpoints.digests import json_digest
from starflow_jax.training.distributed.agreement import gather_texts


def reference_statistics(
    folder: Path, source: Source, network: FeatureNetwork, batch_size: int, shape: tuple[int, ...]
) -> FeatureStatistics | None:
    """Statistics of all images of a source, stored in the folder; every process must call this.

    The network reads real images as it reads samples: uint8 0 to 255, the levels scaled to that range. The stored
    statistics are identified by `contents_digest` of the source and by the digest and fingerprint of the network.

    Args:
      shape: (H, W, C) of every image.

    Returns:
      None on processes other than process 0, which do not need them.

    Raises:
      ValueError: images of another shape, or see `extract_features`.
    """
    network_identity = [network.name, network.digest, network.fingerprint]
    identity = json.dumps([contents_digest(source), shape, *network_identity, MAX_VECTORS, SPLITS])
    path = folder / f"real-{json_digest(identity)}.npz"
    writes = jax.process_index() == 0
    statistics = read_statistics(path, identity) if writes else None
    if json.loads(gather_texts(json.dumps(statistics is None))[0]):
        statistics = feature_statistics(_features(network, source, batch_size, shape), len(source))
        if writes:
            write_statistics(path, statistics, identity)
    return statistics if writes else None


def _features(network: FeatureNetwork, source: Source, batch_size: int, shape: tuple[int, ...]) -> Iterator[Features]:
    for first in range(0, len(source), batch_size):
        images = [source[index]["image"] for index in range(first, min(first + batch_size, len(source)))]
        wrong = next((image.shape for image in images if image.shape != shape), None)
        if wrong is not None:
            raise ValueError(f"{source.name} must contain images of shape {list(shape)}, got {list(wrong)}")
        scaled = np.rint(np.stack(images) * (255.0 / (source.levels - 1))).astype(np.uint8)
        yield extract_features(network, scaled, batch_size)
