"""Generates images for several guidance weights, stores their features in chunks, and computes metrics of them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from starflow_jax.core.choices import ParameterForm
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.evaluation.samples.features.chunk_folder import Chunk, ChunkFolder
from starflow_jax.evaluation.samples.features.feature_network import FeatureNetwork, Features, extract_features
from starflow_jax.evaluation.samples.features.feature_statistics import FeatureStatistics, feature_statistics
from starflow_jax.evaluation.samples.metrics.clip_score import pair_scores
from starflow_jax.evaluation.samples.metrics.metric import compute_metrics
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.parameters import Params
from starflow_jax.sampling import Samples, class_labels, sample
from starflow_jax.sampling.latent_shapes import RunAutoencoder
from starflow_jax.solvers import AnySolver
from starflow_jax.training.distributed.agreement import barrier, gather_texts

# Folded into the seed, so that this noise is independent of other noise from the same seed.
_STREAM = 0xF1D


# Text states of this many captions are kept; those of more are computed whenever images are generated from them.
_KEPT = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Captions:
    """Captions that images are generated from, in turn.

    The text states of many captions take more memory than a host has: 30,000 of 128 tokens of width 2048 take 31 GB.

    Attributes:
      texts: n captions; encode: from some of them to their text states, float32 [k, L, D].
      null: float32 [1, L, D], the states of the empty caption.
    """

    texts: tuple[str, ...]
    encode: Callable[[Sequence[str]], np.ndarray]
    null: np.ndarray

    def states(self, first: int, count: int) -> np.ndarray:
        """Text states of the captions of images first .. first + count - 1, float32 [count, L, D]."""
        rows = np.arange(first, first + count) % len(self.texts)
        if len(self.texts) <= _KEPT:
            return self._all[rows]
        return self.encode([self.texts[row] for row in rows])

    @functools.cached_property
    def _all(self) -> np.ndarray:
        return self.encode(self.texts)


# From images uint8 [B, H, W, C] and their captions to features of both, [B, d] each.
CaptionNetwork = Callable[[np.ndarray, Sequence[str]], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageGenerator:
    """Generates the images that are measured; image i is conditioned on class or caption i modulo their number.

    Attributes:
      params, config: of the flow; seed: of the noise; batch_size: images generated together.
      solver, temperature, attention_temperature: as for `sampling.sample`.
      denoise: options of denoising by name (`sampling.denoising.denoise_fields`); None for the configuration's.
      captions: None for runs without captions.
      autoencoder: decodes the samples of a run on latents; None for a run on pixels.
      parameters: "ready" or "stored" (`SampleConfig`), annealed_guidance: None for the configuration's.
      learned: the learned inverse, for solvers that start from its estimates.
    """

    params: Params
    config: ExperimentConfig
    seed: int
    batch_size: int
    solver: AnySolver
    temperature: float | None = None
    attention_temperature: float = 1.0
    denoise: Mapping[str, Any] | None = None
    captions: Captions | None = None
    autoencoder: RunAutoencoder | None = None
    parameters: ParameterForm | None = None
    learned: LearnedParams | None = None
    annealed_guidance: bool | None = None

    def labels(self, first: int, count: int) -> np.ndarray:
        """Classes of images first .. first + count - 1, int32 [count]; -1 for runs on captions."""
        return class_labels(self.config, first + count)[first:] if self.captions is None else np.full(count, -1)

    def texts(self, first: int, count: int) -> list[str]:
        """Captions of images first .. first + count - 1; empty for runs without captions."""
        if self.captions is None:
            return []
        return [self.captions.texts[index % len(self.captions.texts)] for index in range(first, first + count)]

    def generate(self, guidance: float, chunk: int, first: int, count: int) -> Samples:
        """Images first .. first + count - 1, which are the chunk of index `chunk`."""
        stream = jax.random.fold_in(jax.random.key(self.seed), _STREAM)
        captions = self.captions
        return sample(
            self.params,
            self.config,
            jax.random.fold_in(stream, chunk),
            self.labels(first, count),
            text=None if captions is None else captions.states(first, count),
            null=None if captions is None else captions.null,
            solver=self.solver,
            guidance=guidance,
            annealed_guidance=self.annealed_guidance,
            temperature=self.temperature,
            attention_temperature=self.attention_temperature,
            **(self.denoise or {}),
            parameters=self.parameters,
            batch_size=self.batch_size,
            autoencoder=self.autoencoder,
            learned=self.learned,
        )


def generate_missing(
    folder: ChunkFolder,
    generator: ImageGenerator,
    network: FeatureNetwork,
    guidance: float,
    total: int,
    *,
    pairs: CaptionNetwork | None = None,
    on_chunk: Callable[[int, Samples], None] = lambda chunk, samples: None,
) -> int:
    """Generates the chunks of `total` images that are not stored yet, and stores their features.

    All processes generate together; process 0 finds the missing chunks and writes.

    Args:
      pairs: network whose scores of images and captions are stored too; None for none.
      on_chunk: called with the index and the samples of every new chunk, on every process.

    Returns:
      The number of images that were generated.

    Raises:
      ValueError: see `sampling.check_request` and `extract_features`.
    """
    sizes = folder.chunk_sizes(total)
    missing: list[int] = []
    if jax.process_index() == 0:
        missing = [k for k, n in sizes if folder.read(guidance, k, n, pairs=pairs is not None) is None]
    missing = json.loads(gather_texts(json.dumps(missing))[0])
    for index in missing:
        first, count = index * folder.size, sizes[index][1]
        samples = generator.generate(guidance, index, first, count)
        features = extract_features(network, samples.images, min(generator.batch_size, count))
        scores = None
        if pairs is not None:
            scores = pair_scores(*pair_features(pairs, samples.images, generator.texts(first, count)))
        if jax.process_index() == 0:
            report = samples.report
            folder.write(guidance, index, Chunk(features, scores, report.non_finite, len(report.unconverged)))
        on_chunk(index, samples)
    barrier(f"samples of guidance {guidance!r}")
    return sum(sizes[index][1] for index in missing)


def stored_metrics(
    folder: ChunkFolder, guidance: float, total: int, real: FeatureStatistics, metrics: Sequence[str], *, pairs: bool
) -> dict[str, Any]:
    """Metrics of the stored images of one guidance, with the counts of images and of failures.

    Args:
      real: statistics of real images; metrics: registered metrics; pairs: whether scores of captions are stored.

    Raises:
      ValueError: a chunk is missing, or see `metric.compute_metrics`.
    """
    scores: list[np.ndarray] = []
    counts = np.zeros(2, int)

    def parts() -> Iterator[Features]:
        for chunk in folder.chunks(guidance, total, pairs=pairs):
            counts[:] += (chunk.non_finite, chunk.unconverged)
            if chunk.pair_scores is not None:
                scores.append(chunk.pair_scores)
            yield chunk.features

    statistics = feature_statistics(parts(), total)
    if scores:
        statistics = dataclasses.replace(statistics, pair_scores=np.concatenate(scores))
    row: dict[str, Any] = {"guidance": guidance, "samples": total}
    row |= {"non_finite": int(counts[0]), "unconverged": int(counts[1])}
    return row | compute_metrics(statistics, real, metrics)


def pair_features(pairs: CaptionNetwork, images: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Features of images uint8 [B, H, W, C] and of their captions.

    Raises:
      ValueError: the output of the network is not a pair.
    """
    output = pairs(images, texts)
    if not isinstance(output, tuple) or len(output) != 2:
        raise ValueError("the CLIP function must return (features of images, features of captions)")
    return np.asarray(output[0]), np.asarray(output[1])
