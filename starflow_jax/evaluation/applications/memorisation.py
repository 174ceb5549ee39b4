"""Tests whether a model copies its training images or assigns them higher likelihood.

Three tests need no other model:

- membership: AUROC of log p(x) for training images against held-out ones; above 1/2, training images are favoured.
- copies in pixels: the distance from a sample to its nearest training image, against that from a held-out image: a
  model that copies gives samples nearer than new data would be.
- copies in latents: the same among the z of the flow, in which a distance is measured in standard deviations of the
  model's own noise, so that small changes that the model considers unlikely have a large weight.

A fourth needs one, such as a smaller model of the same data, which memorises less, or a model of other data:

- membership by likelihood ratio: the score log p(x) - log p_reference(x). What makes an image likely or unlikely to any
  model, as its simplicity does, cancels (Watson et al., arXiv 2111.08440, difficulty calibration; Mireshghallah et al.,
  2203.03929; Carlini et al., 2012.07805, compare a larger and a smaller language model in this way).

The test by latents is the nearest training image by likelihood, too: with a Gaussian of any one width s around the
latent of every training image x', the density of a sample x is log N(z(x); z(x'), s^2 I) + log |dz/dx|, and all but
-|z(x) - z(x')|^2 / (2 s^2) is the same for all x'. The likeliest x' is the one with the nearest latent.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.evaluation.applications.roc import Auroc, auroc, true_positive_rate_at

RATE = 0.01  # false positives, at which membership is reported


@dataclasses.dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest reference of every query.

    Attributes:
      index: int64 [n], index of the reference; distance: float64 [n], root mean square over the dimensions; infinite,
        with a meaningless index, where the query or all of its allowed references are not finite.
    """

    index: np.ndarray
    distance: np.ndarray


def nearest(queries: np.ndarray, references: np.ndarray, *, same: np.ndarray | None = None) -> Nearest:
    """The nearest reference of every query; among latents of a flow also the likeliest one (see the module).

    Args:
      queries: real [n, ...]; references: real [m, ...] of the same dimensions.
      same: bool [n, m], the allowed references, at least one for every query; None for all.

    Raises:
      ValueError: no queries, no references, or dimensions that differ.
    """
    queries, references = np.asarray(queries, np.float64), np.asarray(references, np.float64)
    check(
        queries.shape[1:] == references.shape[1:] and queries.size > 0 and references.size > 0,
        f"queries and references must be [n, ...] and [m, ...], got {list(queries.shape)} and {list(references.shape)}",
    )
    flat, flat_references = queries.reshape(len(queries), -1), references.reshape(len(references), -1)
    index = np.empty(len(flat), np.int64)
    distance = np.empty(len(flat))
    for row, query in enumerate(flat):  # one query at a time: all pairs at once would need much memory
        with np.errstate(invalid="ignore", over="ignore"):
            squares = ((flat_references - query) ** 2).mean(axis=1)
        squares = np.where(np.isnan(squares), np.inf, squares)  # values that overflow are infinitely far
        if same is not None:
            check(bool(same[row].any()), f"query {row} must have at least one allowed reference")
            squares = np.where(same[row], squares, np.inf)
        index[row] = squares.argmin()
        distance[row] = np.sqrt(squares[index[row]])
    return Nearest(index, distance)


@dataclasses.dataclass(frozen=True)
class Copying:
    """Distances of samples to training images, against those of held-out images.

    Attributes:
      samples, held_out: median distances, in root mean squares.
      not_finite: distances of either that are not finite, as of latents that overflow; they count as the largest.
      area: AUROC of nearness: the probability that a sample is nearer to the training set than a held-out image; about
        1/2 for a model that generates new images, near 1 for one that copies.
      closer: share of samples that are nearer than 99 of 100 held-out images; 0.01 is expected of new images.
    """

    samples: float
    held_out: float
    area: Auroc
    closer: float
    not_finite: int

    @classmethod
    def from_distances(cls, samples: np.ndarray, held_out: np.ndarray) -> Copying:
        """Computes the attributes from distances [n] and [m]."""
        border = float(np.quantile(held_out, 0.01, method="lower" if np.isinf(held_out).any() else "linear"))
        return cls(
            float(np.median(samples)),
            float(np.median(held_out)),
            auroc(-np.asarray(samples), -np.asarray(held_out)),
            float(np.mean(np.asarray(samples) < border)),
            int(np.sum(~np.isfinite(samples)) + np.sum(~np.isfinite(held_out))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Membership:
    """Separation of training images from held-out images by likelihood.

    Attributes:
      train, held_out: mean bits/dim of those that are finite; area: AUROC of likelihood, training images the
        positives; not_finite: images of either whose log-likelihood overflows, the least likely.
    """

    train: float
    held_out: float
    area: Auroc
    not_finite: int

    @classmethod
    def from_bits(cls, train: np.ndarray, held_out: np.ndarray) -> Membership:
        """Computes the attributes from bits/dim [n] of training images and [m] of held-out ones."""
        both = [np.where(np.isfinite(bits), bits, np.inf) for bits in (train, held_out)]
        finite = [bits[np.isfinite(bits)] for bits in both]
        mean, other = (float(np.mean(bits)) if len(bits) else math.inf for bits in finite)
        lost = sum(len(bits) for bits in both) - sum(len(bits) for bits in finite)
        return cls(mean, other, auroc(-both[0], -both[1]), lost)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class RatioMembership:
    """Separation of training images from held-out images by their likelihood ratio to a reference model.

    Attributes:
      train, held_out: mean of log2 p(x) - log2 p_reference(x) for each dimension, of images whose ratio is finite.
      area: AUROC of the ratio, training images the positives.
      found: share of training images that are found where at most 1 in 100 held-out images is called one;
        found_by_likelihood: the same by log p(x) alone. 0.01 is chance.
      not_finite: images whose log-likelihood overflows in one of the models; those of the first model rank lowest.
    """

    train: float
    held_out: float
    area: Auroc
    found: float
    found_by_likelihood: float
    not_finite: int

    @classmethod
    def from_bits(
        cls,
        train: np.ndarray,
        held_out: np.ndarray,
        reference_train: np.ndarray,
        reference_held_out: np.ndarray,
    ) -> RatioMembership:
        """Computes the attributes from bits/dim of training images [n] and held-out ones [m], by both models.

        Raises:
          ValueError: the models were not given the same images.
        """
        pairs = [(train, reference_train), (held_out, reference_held_out)]
        for bits, reference in pairs:
            check(
                np.ndim(bits) == 1 and np.shape(bits) == np.shape(reference),
                f"bits of both models must be [n], got {list(np.shape(bits))} and {list(np.shape(reference))}",
            )
        ratios, plain = [], []
        for bits, reference in pairs:
            own = np.where(np.isfinite(bits), bits, np.inf)
            with np.errstate(invalid="ignore"):
                ratio = np.where(np.isfinite(reference), reference, np.inf) - own
            ratios.append(np.where(np.isfinite(own), ratio, -np.inf))
            plain.append(-own)
        finite = [ratio[np.isfinite(ratio)] for ratio in ratios]
        mean, other = (float(np.mean(ratio)) if len(ratio) else -math.inf for ratio in finite)
        lost = sum(len(ratio) for ratio in ratios) - sum(len(ratio) for ratio in finite)
        found, by_likelihood = (true_positive_rate_at(one[0], one[1], RATE) for one in (ratios, plain))
        return cls(mean, other, auroc(ratios[0], ratios[1]), found, by_likelihood, lost)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)
