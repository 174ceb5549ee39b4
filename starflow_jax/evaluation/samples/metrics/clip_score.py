"""CLIP score: how well images match their captions, by the cosine of their features.

    score = mean of 100 max(cos(image, caption), 0)

(Hessel et al., "CLIPScore", arXiv 2104.08718, with the factor 100 that is usual for text to image instead of 2.5.)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import METRICS
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.samples.features.feature_statistics import FeatureStatistics
from starflow_jax.evaluation.samples.features.moments import checked_features
from starflow_jax.evaluation.samples.metrics.metric import Column


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """The score of a set of pairs: mean, 0 to 100, and its standard error over pairs (NaN for one)."""

    mean: float
    error: float
    pairs: int


def pair_scores(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """The score of every pair, float64 [n], from features [n, d] of images and of captions; 0 for zero features.

    Raises:
      ValueError: shapes that differ, or values that are not finite.
    """
    images, captions = checked_features(images), checked_features(captions)
    check(
        images.shape == captions.shape,
        f"images and captions must have features of one shape, got {list(images.shape)} and {list(captions.shape)}",
    )
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(captions, axis=1)
    cosine = (images * captions).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    return 100.0 * np.maximum(cosine, 0.0)


def clip_score(scores: np.ndarray) -> ClipScore:
    """The mean over the scores of pairs [n], n above 0."""
    scores = np.asarray(scores, np.float64)
    check(scores.ndim == 1 and len(scores) > 0, f"scores must be [n] with n above 0, got {list(scores.shape)}")
    return ClipScore(float(scores.mean()), standard_error(scores), len(scores))


@METRICS.register(
    "clip",
    title="CLIP score",
    needs="captions",
    better="higher",
    columns=(Column("clip", "CLIP", ".3f", "clip_error", "s.e."),),
)
def clip_score_metric(samples: FeatureStatistics, real: FeatureStatistics) -> dict[str, float]:
    """The CLIP score of the samples and its standard error over pairs; real images play no part."""
    assert samples.pair_scores is not None
    score = clip_score(samples.pair_scores)
    return {"clip": score.mean, "clip_error": score.error}
