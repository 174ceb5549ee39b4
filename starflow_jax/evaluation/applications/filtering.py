"""Detection of wrong labels and damaged images in a data set by exact likelihood."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check, check_real
from starflow_jax.core.figures import text_table
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.applications.roc import Auroc, auroc, precision_at
from starflow_jax.evaluation.likelihood.bayes_classifier import log_mean_exp


@dataclasses.dataclass(frozen=True, eq=False)
class Contaminated:
    """Examples of which some have a wrong label or a damaged image.

    Attributes:
      source: the examples; mislabelled, damaged: bool [n], which ones; no example is both.
    """

    source: ArraySource
    mislabelled: np.ndarray
    damaged: np.ndarray


def contaminate(source: ArraySource, *, mislabelled: float, damaged: float, seed: int = 0) -> Contaminated:
    """Gives a share of the examples another class's label, and damages another share's pixels.

    A damaged image has, in turn, a fifth of its pixels replaced by random levels, or a square of half its side covered
    by the brightest level or the darkest (whichever changes more).

    Args:
      mislabelled, damaged: shares of the examples, together at most 1.
      seed: of the choice and the damage.

    Raises:
      ValueError: shares out of range, or mislabelled examples of a single class.
    """
    for name, share in (("mislabelled", mislabelled), ("damaged", damaged)):
        check_real(name, share, minimum=0.0)
    check(mislabelled + damaged <= 1.0, f"shares must sum to at most 1, got {mislabelled} and {damaged}")
    check(source.num_classes > 1 or not mislabelled, "mislabelled examples need a source of two classes or more")
    rng = np.random.default_rng(seed)
    count = len(source)
    order = rng.permutation(count)
    wrong = order[: round(mislabelled * count)]
    damaged_indices = order[len(wrong) : len(wrong) + round(damaged * count)]
    images, labels = source.images.copy(), source.labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, max(source.num_classes, 2), len(wrong))) % source.num_classes
    for i, index in enumerate(damaged_indices):
        images[index] = (_speckled, _covered)[i % 2](images[index], source.levels, rng)
    marks = np.zeros((2, count), bool)
    marks[0, wrong] = marks[1, damaged_indices] = True
    return Contaminated(dataclasses.replace(source, images=images, labels=labels), *marks)


def _speckled(image: np.ndarray, levels: int, rng: np.random.Generator) -> np.ndarray:
    hit = rng.random(image.shape[:2]) < 0.2
    return np.where(hit[..., None], rng.integers(0, levels, image.shape), image).astype(np.uint8)


def _covered(image: np.ndarray, levels: int, rng: np.random.Generator) -> np.ndarray:
    height, width = (max(1, side // 2) for side in image.shape[:2])
    top, left = rng.integers(0, image.shape[0] - height + 1), rng.integers(0, image.shape[1] - width + 1)
    part = image[top : top + height, left : left + width]
    covered = image.copy()
    covered[top : top + height, left : left + width] = levels - 1 if part.mean() < (levels - 1) / 2 else 0
    return covered


def suspicion_scores(class_log_probs: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Three scores of every example, higher for examples that are more likely bad, float64 [n] each.

    - "image": -log p(x), summed over equally likely classes: finds images that are unlikely under all classes.
    - "label": log p(x | likeliest other class) - log p(x | y): finds labels that another class explains better.
    - "example": -log p(x | y): finds both.

    Args:
      class_log_probs: nats [draws, n, classes]; densities are averaged over draws (`bayes_classifier.classify`).
      labels: int [n], as given.

    Raises:
      ValueError: shapes that do not fit, a single class, or densities that are NaN.
    """
    check(
        class_log_probs.ndim == 3 and class_log_probs.shape[1:2] == np.shape(labels) and class_log_probs.shape[2] > 1,
        "class_log_probs must be [draws, n, classes] of two classes or more for labels [n], "
        f"got {list(class_log_probs.shape)} and {list(np.shape(labels))}",
    )
    check(not np.isnan(class_log_probs).any(), "class_log_probs must not be NaN")
    by_class = log_mean_exp(class_log_probs)
    rows = np.arange(len(by_class))
    label_scores = by_class[rows, labels]
    other_scores = by_class.copy()
    other_scores[rows, labels] = -np.inf
    return {
        "image": np.log(by_class.shape[1]) - np.logaddexp.reduce(by_class, axis=1),
        # The label of an example with zero density under all classes cannot be judged.
        "label": np.where(
            np.isinf(label_scores) & np.isinf(other_scores.max(axis=1)),
            0.0,
            _less(other_scores.max(axis=1), label_scores),
        ),
        "example": -label_scores,
    }


def _less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(a - b)


@dataclasses.dataclass(frozen=True)
class FilterQuality:
    """Quality of one score as a detector of one kind of bad example among all other examples.

    Attributes:
      score, kind: their names; precision: share of bad examples among the k with the highest score; area: under
        the ROC curve; share: of bad examples, the precision of a random score; k: number of bad examples.
    """

    score: str
    kind: str
    precision: float
    area: Auroc
    share: float
    k: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def filtering(contaminated: Contaminated, class_log_probs: np.ndarray) -> list[FilterQuality]:
    """Precision at k and AUROC of every score for every kind of bad example, and for both kinds together.

    Args and errors are those of `suspicion_scores`; a kind without examples is left out.
    """
    scores = suspicion_scores(class_log_probs, contaminated.source.labels)
    kinds = {
        "mislabelled": contaminated.mislabelled,
        "damaged": contaminated.damaged,
        "either": contaminated.mislabelled | contaminated.damaged,
    }
    rows = []
    for kind, bad in kinds.items():
        k = int(bad.sum())
        for name, score in scores.items() if 0 < k < len(bad) else ():
            area = auroc(score[bad], score[~bad])
            rows.append(FilterQuality(name, kind, precision_at(score, bad, k), area, k / len(bad), k))
    return rows


def filtering_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of `FilterQuality.to_dict()` values."""
    table = [("bad examples", "ranked by", "precision at k", "k (all bad ones)", "by chance", "AUROC")]
    for row in rows:
        area = f"{row['area']['area']:.3f} +- {row['area']['error']:.3f}"
        precision, share = f"{100 * row['precision']:.1f} %", f"{100 * row['share']:.1f} %"
        table.append((row["kind"], row["score"], precision, str(row["k"]), share, area))
    return text_table(table)
