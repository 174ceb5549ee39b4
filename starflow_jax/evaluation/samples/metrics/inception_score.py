"""The Inception Score, from the class probabilities that a classifier gives samples.

    IS = exp( mean over samples of KL( p(y | x) || mean of p(y | x) ) )

(Salimans et al., arXiv 1606.03498), averaged over splits of the samples.
"""

from __future__ import annotations

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import METRICS
from starflow_jax.evaluation.samples.features.class_sums import ClassSums
from starflow_jax.evaluation.samples.features.feature_statistics import FeatureStatistics
from starflow_jax.evaluation.samples.metrics.metric import Column


def inception_score(sums: ClassSums) -> tuple[float, float]:
    """The mean over splits, from 1 to the number of classes, and the standard deviation over splits.

    Raises:
      ValueError: a split without samples.
    """
    check(bool((sums.count > 0).all()), f"every split must have samples, got {sums.count.astype(int).tolist()}")
    mean = sums.probability / sums.count[:, None]
    entropy = -(mean * np.log(np.where(mean > 0, mean, 1.0))).sum(axis=1)
    divergence = sums.certainty / sums.count + entropy
    scores = np.exp(divergence)
    return float(scores.mean()), float(scores.std())


@METRICS.register(
    "is",
    title="Inception Score",
    needs="logits",
    better="higher",
    columns=(Column("is", "IS", ".3f", "is_std", "± splits"),),
)
def inception_score_metric(samples: FeatureStatistics, real: FeatureStatistics) -> dict[str, float]:
    """The Inception Score of the samples and its standard deviation over splits; real images play no part."""
    assert samples.classes is not None
    mean, std = inception_score(samples.classes)
    return {"is": mean, "is_std": std}
