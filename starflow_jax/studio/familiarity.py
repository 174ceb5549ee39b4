"""Whether a picture or clip is like the data of the run: its likelihood beside that of held-out examples.

A high likelihood alone says little: simple pictures may be likelier than all of the data (Nalisnick et al., arXiv
1810.09136). Each of the scores of `out_of_distribution` is compared with that of held-out examples, and the verdict is
that of the typicality (arXiv 1906.02994): how far the bits are from their mean over training examples.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping

import jax
import numpy as np

from starflow_jax.core.choices import Split
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.applications.out_of_distribution import TrainingStatistics, ood_scores
from starflow_jax.evaluation.likelihood.scored_source import check_on_pixels, open_scored_source
from starflow_jax.evaluation.likelihood.video_scores import score_clips, source_clips
from starflow_jax.studio.opened_model import OpenedModel
from starflow_jax.studio.scoring import Score, array_source, is_plain, levels_of, studied

PICTURES, CLIPS = 200, 24  # examples of each split that are compared with
UNLIKE = 0.05  # of fewer held-out examples, the example is unlike the data
_TYPICALITY = "typicality"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A score of an example beside those of held-out ones; higher looks further from the data.

    Attributes:
      name: of the score; value: in bits.
      share: of the held-out examples that score at least as high, the example itself counted with them, above 0 to 1.
    """

    name: str
    value: float
    share: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether an example is like the data of the run.

    Attributes:
      like: whether its typicality is that of at least 5 % of the held-out examples.
      comparisons: by every score; held_out: examples that it is compared with.
    """

    like: bool
    comparisons: tuple[Comparison, ...]
    held_out: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Reference:
    """The bits of training examples and of held-out ones, and the scores of the latter by name."""

    training: TrainingStatistics
    held_out: Mapping[str, np.ndarray]


class Familiarity:
    """Judges examples; the examples of the run are scored once, at the first call.

    Attributes:
      model: on pixels.
    """

    def __init__(self, model: OpenedModel):
        self.model = model
        self._lock = threading.Lock()
        self._reference: _Reference | None = None

    def judge(self, score: Score) -> Verdict:
        """Compares a score with those of the run's own examples.

        Raises:
          ValueError: the data of the run are not where they were, or cannot be read.
        """
        with self._lock:
            if self._reference is None:
                self._reference = _pictures(self.model) if is_plain(self.model) else _clips(self.model)
            reference = self._reference
        found = self._scores(score, reference.training)
        comparisons = tuple(
            Comparison(name, value, _share(value, reference.held_out[name])) for name, value in found.items()
        )
        typical = next(one for one in comparisons if one.name == _TYPICALITY)
        return Verdict(typical.share >= UNLIKE, comparisons, len(reference.held_out[_TYPICALITY]))

    def _scores(self, score: Score, training: TrainingStatistics) -> dict[str, float]:
        if not is_plain(self.model):
            of_clip = _clip_scores(training.mean_bits, np.asarray([score.bits / score.pixels.size]))
            return {name: float(one[0]) for name, one in of_clip.items()}
        source = array_source(self.model, *levels_of(self.model, score.pixels))
        return {name: float(one[0]) for name, one in ood_scores(training, source, np.asarray([score.bits])).items()}


def _pictures(model: OpenedModel) -> _Reference:
    sources = [_in_memory(model, split) for split in ("train", "test")]
    bits = []
    for stream, source in enumerate(sources, 2):
        run = studied(model, source)
        bits.append(run.bits(run.class_log_probs(source, stream), source))
    training = TrainingStatistics.from_training(sources[0], bits[0])
    return _Reference(training, ood_scores(training, sources[1], bits[1]))


def _in_memory(model: OpenedModel, split: Split) -> ArraySource:
    source = open_scored_source(model.config, split, PICTURES)
    images = np.stack([source[index]["image"] for index in range(min(PICTURES, len(source)))])
    return array_source(model, images, source.levels)


def _clips(model: OpenedModel) -> _Reference:
    """Of clips, bits/dim in place of bits, since their lengths differ."""
    check_on_pixels(model.config)
    splits: list[Split] = ["train", "test"]
    values = []
    for split in splits:
        source = open_scored_source(model.config, split, CLIPS)
        clips = source_clips(source, model.config, min(CLIPS, len(source)))
        scored = score_clips(model.run.params, model.config, clips, jax.random.key(0), draws=1, batch_size=8)
        values.append(np.asarray([one.bits_per_dim for one in scored]))
    mean = float(values[0].mean())
    return _Reference(TrainingStatistics(mean, np.ones(1)), _clip_scores(mean, values[1]))


def _clip_scores(mean: float, bits: np.ndarray) -> dict[str, np.ndarray]:
    return {"likelihood": bits, _TYPICALITY: np.abs(bits - mean)}


def _share(value: float, held_out: np.ndarray) -> float:
    return (1 + int(np.sum(held_out >= value))) / (1 + len(held_out))
