"""Statistics of the features of real images, computed once for a source and a network and stored in a folder."""

from __future__ import annotations

import json
import time
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
    RunningStatistics,
    read_statistics,
    write_statistics,
)
from starflow_jax.evaluation.samples.features.partial_statistics import PartialStatistics
from starflow_jax.training.checkpoints.digests import json_digest
from starflow_jax.training.distributed.agreement import gather_texts

STORE_SECONDS = 60.0


def reference_statistics(
    folder: Path,
    source: Source,
    network: FeatureNetwork,
    batch_size: int,
    shape: tuple[int, ...],
    *,
    store_seconds: float = STORE_SECONDS,
) -> FeatureStatistics | None:
    """Statistics of all images of a source, stored in the folder; every process must call this.

    The network reads real images as it reads samples: uint8 0 to 255, the levels scaled to that range. The stored
    statistics are identified by `contents_digest` of the source and by the digest and fingerprint of the network.
    An interrupted pass goes on from the images whose statistics were stored last.

    Args:
      shape: (H, W, C) of every image; store_seconds: the time after which the statistics so far are stored.

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
        partial = PartialStatistics(path.with_suffix(".partial"), identity)
        running = partial.read(len(source)) if writes else RunningStatistics(len(source))
        first = int(gather_texts(str(running.done))[0])
        parts = _features(network, source, batch_size, shape, first)
        if not writes:
            for _ in parts:  # all processes compute features together
                pass
            return None
        _add_all(parts, running, partial, store_seconds)
        statistics = running.result()
        write_statistics(path, statistics, identity)
        partial.remove()
    return statistics if writes else None


def _add_all(
    parts: Iterator[Features], running: RunningStatistics, partial: PartialStatistics, store_seconds: float
) -> None:
    """Adds all parts to the statistics, which are stored from time to time."""
    files = stored = len(running.features)
    start_time = time.monotonic()
    for part in parts:
        running.add(part)
        if running.moments is not None and time.monotonic() - start_time >= store_seconds:
            partial.write(running, files, np.concatenate(running.features[stored:]))
            files, stored, start_time = files + 1, len(running.features), time.monotonic()


def _features(
    network: FeatureNetwork, source: Source, batch_size: int, shape: tuple[int, ...], start: int
) -> Iterator[Features]:
    for first in range(start, len(source), batch_size):
        images = [source[index]["image"] for index in range(first, min(first + batch_size, len(source)))]
        wrong = next((image.shape for image in images if image.shape != shape), None)
        if wrong is not None:
            raise ValueError(f"{source.name} must contain images of shape {list(shape)}, got {list(wrong)}")
        scaled = np.rint(np.stack(images) * (255.0 / (source.levels - 1))).astype(np.uint8)
        yield extract_features(network, scaled, batch_size)
