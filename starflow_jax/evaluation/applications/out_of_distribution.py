"""Out-of-distribution detection by exact likelihood, and where it fails.

A high likelihood does not mean that an image is in distribution: simple images may be likelier than all training images
(Nalisnick et al., arXiv 1810.09136). Scores, each higher for images that look out of distribution:

- "likelihood": bits of the image, -log2 p(x). The plain score, which is low for simple images.
- "typicality": how far these bits are from their mean over training images (Nalisnick et al., arXiv 1906.02994).
- "background ratio": bits minus those under independent pixels with the training images' histogram, the simplest
  background model of a likelihood ratio (Ren et al., arXiv 1906.02845).
- "complexity ratio": bits minus those of a universal code (Serra et al., arXiv 1909.11480; `code_length`).
- "reference ratio", where there is a second model: bits minus those under it, log2 p_reference(x) - log2 p(x), the
  likelihood ratio of 1906.02845 with this model as the background (and of Schirrmeister et al., arXiv 2006.10848, with
  a model of general images).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.figures import text_table
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.applications.code_length import code_lengths
from starflow_jax.evaluation.applications.roc import Auroc, auroc

SCORES = ("likelihood", "typicality", "background ratio", "complexity ratio")
REFERENCE_SCORE = "reference ratio"

# Images with their bits -log2 p(x) [n] and, where there is a reference model, their bits under it.
Scored = tuple[ArraySource, np.ndarray] | tuple[ArraySource, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingStatistics:
    """Statistics of the training images that the scores need.

    Attributes:
      mean_bits: mean of -log2 p(x) over training images.
      background: float64 [levels], the share of every level among their pixels, all above 0.
    """

    mean_bits: float
    background: np.ndarray

    @classmethod
    def from_training(cls, source: ArraySource, bits: np.ndarray) -> TrainingStatistics:
        """Computes the statistics from training images and their bits [n]; bits that are not finite do not count."""
        check(np.shape(bits) == (len(source),), f"bits must be [{len(source)}], got {list(np.shape(bits))}")
        counts = np.bincount(source.images.ravel(), minlength=source.levels) + 0.5
        bits = np.asarray(bits, np.float64)
        finite = bits[np.isfinite(bits)]
        return cls(float(np.mean(finite)) if len(finite) else math.inf, counts / counts.sum())


def ood_scores(
    training: TrainingStatistics, source: ArraySource, bits: np.ndarray, reference: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The scores of images by name, float64 [n] each; see the module.

    Args:
      source: the images; bits: -log2 p(x) of each, [n]. Where it is not finite (the log-likelihood
        overflows), every score is infinite.
      reference: the same under a reference model, or None. Where only this is not finite, the ratio is the lowest.

    Raises:
      ValueError: other shapes.
    """
    bits = np.asarray(bits, np.float64)
    check(bits.shape == (len(source),), f"bits must be [{len(source)}], got {list(bits.shape)}")
    bits = np.where(np.isfinite(bits), bits, np.inf)
    pixels = source.images.reshape(len(source), -1)
    background = -np.log2(training.background)[pixels].sum(axis=1)
    scores = {
        "likelihood": bits,
        # Without a finite training image there is no mean to compare with.
        "typicality": np.abs(bits - training.mean_bits) if math.isfinite(training.mean_bits) else bits,
        "background ratio": bits - background,
        "complexity ratio": bits - code_lengths(source.images, source.levels),
    }
    if reference is not None:
        reference = np.asarray(reference, np.float64)
        check(reference.shape == bits.shape, f"reference must be [{len(bits)}], got {list(reference.shape)}")
        with np.errstate(invalid="ignore"):
            ratio = bits - np.where(np.isfinite(reference), reference, np.inf)
        scores[REFERENCE_SCORE] = np.where(np.isfinite(bits), ratio, np.inf)
    return scores


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """Detection of one out-of-distribution set against held-out images.

    Attributes:
      name: of the set; bits_per_dim: mean of its images; areas: AUROC of each score.
      likelier: share of its images that are likelier than the median held-out image; chance is 1/2.
      not_finite: images whose log-likelihood overflows; they rank highest in every score, and are left out of the mean.
    """

    name: str
    bits_per_dim: float
    likelier: float
    not_finite: int
    areas: Mapping[str, Auroc]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        areas = {name: area.to_dict() for name, area in self.areas.items()}
        values = dataclasses.asdict(dataclasses.replace(self, areas={}))
        del values["areas"]
        return {**values, "auroc": areas}


def detect(
    training: TrainingStatistics,
    held_out: Scored,
    others: Mapping[str, Scored],
) -> list[Detection]:
    """AUROC of every score on every out-of-distribution set; below 1/2 the score prefers out-of-distribution images.

    Args:
      held_out: held-out images with their bits; others: the same for out-of-distribution sets, by name. Either all
        have bits under the reference model or none.
    """
    normal = ood_scores(training, *held_out)
    results = []
    for name, scored in others.items():
        source, scores = scored[0], ood_scores(training, *scored)
        areas = {score: auroc(scores[score], normal[score]) for score in normal}
        bits_of_set = scores["likelihood"]
        likelier = float(np.mean(bits_of_set < np.median(normal["likelihood"])))
        finite_bits = bits_of_set[np.isfinite(bits_of_set)]
        mean = float(np.mean(finite_bits)) / source.images[0].size if len(finite_bits) else math.inf
        results.append(Detection(name, mean, likelier, len(bits_of_set) - len(finite_bits), areas))
    return results


def detection_table(rows: list[Mapping[str, Any]]) -> str:
    """A Markdown table of `Detection.to_dict()` values."""
    head = ("out-of-distribution images", "bits/dim", "not finite", "likelier than median held-out")
    scores = [*SCORES, *(score for score in (rows[0]["auroc"] if rows else ()) if score not in SCORES)]
    table: list[tuple[str, ...]] = [(*head, *scores)]
    for row in rows:
        areas = [row["auroc"][score] for score in scores]
        cells = [f"{area['area']:.3f} +- {area['error']:.3f}" for area in areas]
        mean = row["bits_per_dim"]  # None: infinite, as JSON has it
        bits = "-" if mean is None or not math.isfinite(mean) else f"{mean:.2f}" if mean < 1e5 else f"{mean:.3e}"
        table.append((row["name"], bits, str(row["not_finite"]), f"{100 * row['likelier']:.1f} %", *cells))
    return text_table(table)
