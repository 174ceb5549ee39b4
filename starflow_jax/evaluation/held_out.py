"""The likelihood of held-out data while a run trains."""

from __future__ import annotations

import jax
import numpy as np

from starflow_jax.config.experiment import ExperimentConfig
from starflow_jax.data import Source
from starflow_jax.evaluation.likelihood import BitsPerDim, log_probs
from starflow_jax.evaluation.surprise import score_clips, source_clips
from starflow_jax.training import Callback, Snapshot, open_source
from starflow_jax.training.inputs import check_source


def held_out_score(config: ExperimentConfig) -> Callback:
    """A training callback that records `held_out_bits_per_dim`.

    It scores the first `evaluate.held_out` images or clips of the test split with the noise of seed 0: what
    `starflow evaluate` reports for images (under uniform dequantisation, whatever noise the run trains with) and
    `starflow score` for clips (with the run's own noise), where those read as many.

    Raises:
      ValueError: no test split, or one that does not fit the flow.
    """
    source = open_source(config.data, "test", flow=config.flow)
    check_source(source, config.flow, config.text)
    count = min(config.evaluate.held_out, len(source))
    return lambda snapshot: {"held_out_bits_per_dim": _bits_per_dim(snapshot, source, count)}


def _bits_per_dim(snapshot: Snapshot, source: Source, count: int) -> float:
    config, draws = snapshot.config, snapshot.config.evaluate.draws
    key = jax.random.key(0)
    if config.data.frames:
        clips = source_clips(source, config, count)
        found = score_clips(
            snapshot.params, config, clips, key, draws=draws, batch_size=min(16, config.evaluate.batch_size)
        )
        return float(np.mean([clip.bits_per_dim for clip in found]))
    first = _First(source, count)
    scores = log_probs(snapshot.params, config.flow, first, key, draws=draws, batch_size=config.evaluate.batch_size)
    return BitsPerDim.of(scores, int(np.prod(source[0]["image"].shape)), source.levels).mean


class _First:
    """The first examples of a source."""

    def __init__(self, source: Source, count: int):
        self._source, self._count = source, count
        self.name, self.levels, self.num_classes = source.name, source.levels, source.num_classes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int):
        return self._source[place]
