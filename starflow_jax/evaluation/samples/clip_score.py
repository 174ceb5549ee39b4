"""CLIP score: how well pictures fit their captions, by the angle of features of both.

    score = mean of 100 max(cos(picture, caption), 0)

(Hessel et al., "CLIPScore", arXiv 2104.08718, with the factor 100 that is usual for text to image instead of 2.5.)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.samples.moments import checked_features


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """The score of a set of pairs: mean, 0 to 100, and its standard error over pairs (NaN for one)."""

    mean: float
    error: float
    pairs: int


def pair_scores(pictures: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """Of every pair, float64 [n], from features [n, d] of pictures and of their captions; 0 where one is zero.

    Raises:
      ValueError: shapes that differ, or values that are not finite.
    """
    pictures, captions = checked_features(pictures), checked_features(captions)
    check(
        pictures.shape == captions.shape,
        f"pictures and captions must have features of one shape, got {list(pictures.shape)} and {list(captions.shape)}",
    )
    lengths = np.linalg.norm(pictures, axis=1) * np.linalg.norm(captions, axis=1)
    cosine = (pictures * captions).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    return 100.0 * np.maximum(cosine, 0.0)


def clip_score(scores: np.ndarray) -> ClipScore:
    """The mean of the scores of pairs [n], n above 0."""
    scores = np.asarray(scores, np.float64)
    check(scores.ndim == 1 and len(scores) > 0, f"scores must be [n] with n above 0, got {list(scores.shape)}")
    return ClipScore(float(scores.mean()), standard_error(scores), len(scores))
