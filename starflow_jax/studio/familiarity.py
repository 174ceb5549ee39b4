"""Whether a picture or clip is like the data of the run: its likelihood beside that of held-out examples.

A high likelihood alone says little: simple pictures may be likelier than all of the data (Nalisnick et al., arXiv
1810.09136). Each of the scores of `out_of_distribution` is compared with that of held-out examples, and the verdict is
that of the typicality (arXiv 1906.02994): how far the bits are from their mean over training examples.
Clips and captioned pictures are all compared under the empty caption or no class: under different conditions, or with
different numbers of draws of the noise, examples of the data would not be like each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from starflow_jax.core.choices import Split
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.applications.out_of_distribution import TrainingStatistics, ood_scores
from starflow_jax.evaluation.likelihood.scored_source import check_on_pixels, open_scored_source
from starflow_jax.studio.opened_model import OpenedModel
from starflow_jax.studio.scoring import Score, array_source, is_plain, levels_of, plain_bits_per_dim, studied

Report = Callable[[int], None]
PICTURES, CLIPS = 200, 24  # examples of each split that are compared with
_MOST_SCORES = 20_000  # pictures of a split by classes
_FEWEST = 20  # pictures of a run of many classes; fewer could not be told from an unlike one
_PIECE = 8  # pictures that are scored at a time
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
      like: whether its typicality is that of at least 5 % of the held-out examples; None where these are so few that
        any example would be, 19 or less.
      comparisons: by every score; held_out: examples that it is compared with.
    """

    like: bool | None
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
        self._reference: _Reference | None = None

    def judge(self, score: Score, report: Report = lambda amount: None) -> Verdict:
        """Compares a score with those of the run's own examples; by one thread at a time, that which holds the device.

        Args:
          report: called with the number of the run's examples that were scored since the last call.

        Raises:
          ValueError: the data of the run are not where they were, or cannot be read.
        """
        if self._reference is None:
            make = _pictures if is_plain(self.model) else _clips
            self._reference = make(self.model, report)
        reference = self._reference
        found = self._scores(score, reference.training)
        comparisons = tuple(
            Comparison(name, value, _share(value, reference.held_out[name])) for name, value in found.items()
        )
        typical = next(one for one in comparisons if one.name == _TYPICALITY)
        held_out = len(reference.held_out[_TYPICALITY])
        like = None if 1 / (1 + held_out) >= UNLIKE else typical.share >= UNLIKE
        return Verdict(like, comparisons, held_out)

    def _scores(self, score: Score, training: TrainingStatistics) -> dict[str, float]:
        images, levels = levels_of(self.model, score.pixels)
        if not is_plain(self.model):
            plain = score.bits_per_dim
            if score.condition:
                plain = plain_bits_per_dim(self.model, images, levels, 0)
            return {name: float(one[0]) for name, one in _clip_scores(training.mean_bits, np.asarray([plain])).items()}
        source = array_source(self.model, images, levels)
        return {name: float(one[0]) for name, one in ood_scores(training, source, np.asarray([score.bits])).items()}


def reference_size(classes: int) -> int:
    """Pictures of each split that are compared with: fewer for many classes, each of which scores every picture."""
    return max(_FEWEST, min(PICTURES, _MOST_SCORES // max(classes, 1)))


def _pictures(model: OpenedModel, report: Report) -> _Reference:
    sources = [_in_memory(model, split) for split in ("train", "test")]
    bits = [_bits(model, source, 2 + number, report) for number, source in enumerate(sources)]
    training = TrainingStatistics.from_training(sources[0], bits[0])
    return _Reference(training, ood_scores(training, sources[1], bits[1]))


def _bits(model: OpenedModel, source: ArraySource, stream: int, report: Report) -> np.ndarray:
    """-log2 p(x) of pictures, the class summed out, float64 [n]; piece after piece, each with noise of its own."""
    bits = []
    for begin in range(0, len(source), _PIECE):
        count = min(_PIECE, len(source) - begin)
        # The last piece is filled up, so that there is one program.
        piece = array_source(model, source.images[np.resize(np.arange(begin, begin + count), _PIECE)], source.levels)
        run = studied(model, piece)
        bits.append(run.bits(run.class_log_probs(piece, stream + 2 * begin), piece)[:count])
        report(count)
    return np.concatenate(bits)


def _in_memory(model: OpenedModel, split: Split) -> ArraySource:
    count = reference_size(len(model.classes))
    source = open_scored_source(model.config, split, count)
    images = np.stack([source[index]["image"] for index in range(min(count, len(source)))])
    return array_source(model, images, source.levels)


def _clips(model: OpenedModel, report: Report) -> _Reference:
    """Of clips, bits/dim in place of bits, since their lengths differ."""
    check_on_pixels(model.config)
    splits: list[Split] = ["train", "test"]
    values = []
    for stream, split in enumerate(splits, 1):
        source, found = open_scored_source(model.config, split, CLIPS), []
        for index in range(min(CLIPS, len(source))):
            pixels = source[index]["image"]
            frames = pixels if pixels.ndim == 4 else pixels[None]
            found.append(plain_bits_per_dim(model, frames, source.levels, stream + 2 * index))
            report(1)
        values.append(np.asarray(found))
    mean = float(values[0].mean())
    return _Reference(TrainingStatistics(mean, np.ones(1)), _clip_scores(mean, values[1]))


def _clip_scores(mean: float, bits: np.ndarray) -> dict[str, np.ndarray]:
    return {"likelihood": bits, _TYPICALITY: np.abs(bits - mean)}


def _share(value: float, held_out: np.ndarray) -> float:
    return (1 + int(np.sum(held_out >= value))) / (1 + len(held_out))
