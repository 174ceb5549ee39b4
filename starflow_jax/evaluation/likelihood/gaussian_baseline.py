"""A baseline: a full-covariance Gaussian mixture for each class.

    log p(x) = logsumexp over y of (log p(x | y) + log p(y)),    p(y | x) by Bayes' rule

It is fitted in closed form or by a few steps of expectation maximisation, to pixels dequantised as the input of a flow
is, so that its bits/dim and accuracy compare with those of a flow on the same data.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from starflow_jax.data.decoding.dequantise import bits_per_dim, dequantise
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.data.sources.digits import every_fifth


@dataclass(frozen=True, eq=False)
class ClassConditionalGaussian:
    """A fitted baseline.

    Attributes:
      mixtures: p(x | y), one for each class.
      log_prior: float64 [classes], log of the classes' shares of the training data.
      components: Gaussians in each mixture.
      regularisation: variance added to every covariance, in squared units of the integer pixel grid.
    """

    mixtures: tuple[GaussianMixture, ...]
    log_prior: np.ndarray
    components: int
    regularisation: float

    def class_log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x | y) in nats, float64 [n, classes], of dequantised images [n, ...] in [-1, 1)."""
        flat = np.asarray(x, np.float64).reshape(len(x), -1)
        return np.stack([mixture.score_samples(flat) for mixture in self.mixtures], axis=1)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x) in nats with the label summed out, float64 [n], of dequantised images [n, ...]."""
        return np.logaddexp.reduce(self.class_log_prob(x) + self.log_prior, axis=1)

    def classify(self, x: np.ndarray) -> np.ndarray:
        """The most probable class by Bayes' rule, int64 [n], of dequantised images [n, ...]."""
        return np.argmax(self.class_log_prob(x) + self.log_prior, axis=1)


@dataclass(frozen=True)
class GaussianScores:
    """Scores of a baseline on a source.

    Attributes:
      bits_per_dim: from log p(x | true label).
      bits_per_dim_unlabelled: from log p(x), the label summed out.
      accuracy: share of examples that Bayes' rule gives their true label, 0 to 1.
    """

    bits_per_dim: float
    bits_per_dim_unlabelled: float
    accuracy: float


def fit_class_gaussians(
    source: ArraySource,
    *,
    components: Sequence[int] = (1, 2, 3, 4),
    regularisation: Sequence[float] = (0.03, 0.1, 0.2, 0.3, 0.5),
    draws: int = 4,
    seed: int = 0,
) -> ClassConditionalGaussian:
    """Fits the baseline, choosing its size and smoothing within the given data.

    Every pair of `components` and `regularisation` is fitted to four fifths of `source` and scored by
    bits/dim with the true label on the other fifth (`every_fifth`); the best pair is then fitted to all of
    it. With a single pair this step is skipped.

    Args:
      source: training examples, at least as many of every class as the largest number of components.
      components: numbers of Gaussians in a mixture to try.
      regularisation: variances to try, in squared units of the integer pixel grid (dequantisation itself
        adds 1/12).
      draws: how many times each example is dequantised anew for fitting.
      seed: seed of the dequantisation and of the mixtures' starts.

    Raises:
      ValueError: no values to try, a number out of range, or a class with too few examples.
    """
    if not components or min(components) < 1:
        raise ValueError(f"components must be integers >= 1, got {tuple(components)}.")
    if not regularisation or min(regularisation) < 0:
        raise ValueError(f"regularisation must be numbers >= 0, got {tuple(regularisation)}.")
    _check_draws(draws)

    pairs = list(itertools.product(components, regularisation))
    best = pairs[0]
    if len(pairs) > 1:
        fitting, choosing = every_fifth(source)
        fit_part = source.subset(fitting, f"{source.name}-fit")
        choose_part = source.subset(choosing, f"{source.name}-choose")
        scores = [
            score_class_gaussians(_fit(fit_part, *pair, draws, seed), choose_part, draws=draws, seed=seed + 1)
            for pair in pairs
        ]
        best = min(zip(pairs, scores, strict=True), key=lambda scored: scored[1].bits_per_dim)[0]
    return _fit(source, *best, draws, seed)


def score_class_gaussians(
    model: ClassConditionalGaussian, source: ArraySource, *, draws: int = 1, seed: int = 0
) -> GaussianScores:
    """Bits/dim and accuracy on a source, averaged over `draws` dequantisations of every example.

    Raises:
      ValueError: draws below 1, or a source with another number of classes.
    """
    _check_draws(draws)
    if source.num_classes != len(model.mixtures):
        raise ValueError(f"source must have the model's {len(model.mixtures)} classes, got {source.num_classes}.")
    x, labels = _dequantised(source, draws, seed)
    by_class = model.class_log_prob(x)
    joint = by_class + model.log_prior
    labelled = by_class[np.arange(len(labels)), labels]
    unlabelled = np.logaddexp.reduce(joint, axis=1)
    dims = x.shape[1]
    return GaussianScores(
        bits_per_dim=float(bits_per_dim(labelled.mean(), dims, source.levels)),
        bits_per_dim_unlabelled=float(bits_per_dim(unlabelled.mean(), dims, source.levels)),
        accuracy=float(np.mean(joint.argmax(axis=1) == labels)),
    )


def _fit(
    source: ArraySource, components: int, regularisation: float, draws: int, seed: int
) -> ClassConditionalGaussian:
    counts = np.bincount(source.labels, minlength=source.num_classes)
    if counts.min() * draws < max(components, 2):
        raise ValueError(
            f"source must contain at least {max(components, 2)} dequantised examples of every class, "
            f"got {counts.min() * draws} of class {int(counts.argmin())}."
        )
    x, labels = _dequantised(source, draws, seed)
    # The grid's unit is 2 / levels on the scale of x.
    variance = regularisation * (2.0 / source.levels) ** 2
    mixtures = []
    for label in range(source.num_classes):
        mixture = GaussianMixture(components, reg_covar=variance, tol=1e-2, max_iter=50, random_state=seed)
        # Matrices are so small that more threads would only wait for each other.
        with warnings.catch_warnings(), threadpool_limits(1):
            # Stopping early only regularises further, and the selection scores the resulting mixture.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixtures.append(mixture.fit(x[labels == label]))
    log_prior = np.log(counts / counts.sum())
    return ClassConditionalGaussian(tuple(mixtures), log_prior, components, regularisation)


def _dequantised(source: ArraySource, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`draws` dequantisations of every example: float64 [draws * n, H * W * C], and labels [draws * n]."""
    images = np.tile(source.images.reshape(len(source), -1), (draws, 1))
    noise = np.random.default_rng(seed).random(images.shape)
    return dequantise(images, noise, source.levels), np.tile(source.labels, draws)


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
