"""The likelihood of held-out data while a run trains."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.data import Source, bits_per_dim
from starflow_jax.data.pipeline.readable_subset import next_readable
from starflow_jax.data.sources.mixture import example_spec
from starflow_jax.evaluation.likelihood.image_likelihood import BitsPerDim, log_probs
from starflow_jax.evaluation.likelihood.video_scores import score_clips, source_clips
from starflow_jax.sampling.ranking import log_likelihoods
from starflow_jax.training import Callback, Snapshot
from starflow_jax.training.run_calibration import example_conditions, main_component
from starflow_jax.training.step.frozen_autoencoder import Frozen, open_with_encoder
from starflow_jax.training.step.inputs import noisy_pixels


def held_out_score(config: ExperimentConfig) -> Callback:
    """A training callback that records `held_out_bits_per_dim`.

    It scores the first `evaluate.held_out` images or clips of the test split with the noise of seed 0. For as many
    examples, the value equals that of `starflow evaluate` for images (uniform dequantisation, also for runs trained on
    other noise, and at the lowest noise level of a noise-conditioned flow) and of `starflow score` for clips (with the
    noise of the run). Images with captions, and latents, are scored with the noise of the run and under their own
    conditions; for latents it is -log2 of the density for each dimension. Of several sources or buckets, the one of the
    flow's size is scored.

    Raises:
      ValueError: no test split, or one that does not fit the flow.
    """
    source, encoder = open_with_encoder(config, "test")
    source = main_component(source, config.flow, None if encoder is None else encoder.autoencoder)
    count = min(config.evaluate.held_out, len(source))
    return lambda snapshot: {"held_out_bits_per_dim": _bits_per_dim(snapshot, source, encoder, count)}


def _bits_per_dim(snapshot: Snapshot, source: Source, encoder: Frozen | None, count: int) -> float:
    config, draws = snapshot.config, snapshot.config.evaluate.draws
    key = jax.random.key(0)
    spec = example_spec(source)
    captioned = "text_states" in spec or ("text" in spec and (config.text is None or not _is_clips(source)))
    if captioned or not source.levels or encoder is not None:
        return _density(snapshot, source, encoder, count, key)
    if config.data.frames:
        clips = source_clips(source, config, count)
        clip_scores = score_clips(
            snapshot.params, config, clips, key, draws=draws, batch_size=min(16, config.evaluate.batch_size)
        )
        return float(np.mean([clip.bits_per_dim for clip in clip_scores]))
    first = _First(source, count)
    scores = log_probs(
        snapshot.params,
        config.flow,
        first,
        key,
        draws=draws,
        batch_size=config.evaluate.batch_size,
        noise_level=config.flow.lowest_level,
    )
    return BitsPerDim.from_log_probs(scores, int(np.prod(source[0]["image"].shape)), source.levels).mean


def _is_clips(source: Source) -> bool:
    return len(example_spec(source)["image"][0]) == 4


def _density(snapshot: Snapshot, source: Source, encoder: Frozen | None, count: int, key: jax.Array) -> float:
    """Mean bits/dim of the noisy examples, each under its own condition."""
    config, draws = snapshot.config, snapshot.config.evaluate.draws
    examples = [next_readable(source, index) for index in range(count)]
    conditions = example_conditions(config, examples)
    cond = None if conditions is None else np.asarray(conditions)
    lengths = np.asarray([example["length"] for example in examples]) if "length" in examples[0] else None
    clean, levels = [jnp.asarray(example["image"]) for example in examples], source.levels
    if encoder is not None:
        clean, levels = [encoder.latents(image[None], levels)[0] for image in clean], 0
    bits = []
    for draw in range(draws):
        x = []
        for index, image in enumerate(clean):
            example_key = jax.random.fold_in(jax.random.fold_in(key, draw), index)
            x.append(np.asarray(noisy_pixels(example_key, image, levels, config.data)))
        size = min(count, config.evaluate.batch_size)
        scored = log_likelihoods(snapshot.params, config.flow, np.stack(x), cond, batch_size=size, lengths=lengths)
        nats, dims = scored.astype(np.float64), x[0].size
        if lengths is not None:  # all nats over all numbers, as `VectorScores.bits_per_dim`
            dims = float(lengths.mean()) * x[0].shape[-1]
        bits.append(bits_per_dim(nats, dims, levels) if levels else -nats / (dims * math.log(2)))
    return float(np.mean(bits))


class _First:
    """The first examples of a source."""

    def __init__(self, source: Source, count: int):
        self._source, self._count = source, count
        self.name, self.levels, self.num_classes = source.name, source.levels, source.num_classes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int):
        return self._source[index]
