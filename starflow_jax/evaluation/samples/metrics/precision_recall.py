"""Improved precision and recall: the share of samples among real features, and of real features among samples.

(Kynkäänniemi et al., arXiv 1904.06991.) The manifold of a set is the union of balls around its vectors, each with the
distance to the k-th nearest other vector as its radius. Precision is the share of samples inside the real manifold,
recall the share of real vectors inside the manifold of the samples. Distances are computed in blocks, so that no matrix
of all pairs is stored.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.registries import METRICS
from starflow_jax.evaluation.samples.features.feature_statistics import FeatureStatistics
from starflow_jax.evaluation.samples.features.moments import checked_features
from starflow_jax.evaluation.samples.metrics.metric import Column

NEIGHBOURS = 3
_BLOCK = 2048
# Bound on the relative error of |x|^2 + |y|^2 - 2 xy in float32, as a share of |x|^2 + |y|^2.
_ROUNDING = np.float32(1e-6)
_CENTRE_ROWS = 1024  # number of vectors whose median is subtracted


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall from 0 to 1, and k, the neighbour that gives the radius of a ball."""

    precision: float
    recall: float
    neighbours: int


def precision_recall(
    real: np.ndarray, samples: np.ndarray, *, neighbours: int = NEIGHBOURS, block: int = _BLOCK
) -> PrecisionRecall:
    """Precision and recall of features of samples [m, d] against real features [n, d].

    Distances are computed in float32 on the default device. A vector whose distance equals the radius up to rounding
    counts as inside. The rounding bound is computed for each pair and the median of the real features is subtracted, so
    that a few outliers do not blur the distances among the other vectors.

    Args:
      neighbours: k; each set needs more vectors than that.
      block: rows and columns of a block of distances; it does not affect results.

    Raises:
      ValueError: empty features, features of two widths, or too few vectors.
    """
    real, samples = checked_features(real), checked_features(samples)
    check(
        real.shape[1] == samples.shape[1], f"features must have one width, got {real.shape[1]} and {samples.shape[1]}"
    )
    check_integer("neighbours", neighbours, minimum=1)
    fewest = min(len(real), len(samples))
    check(fewest > neighbours, f"precision and recall need more than {neighbours} vectors of each set, got {fewest}")
    centre = np.median(real[:: -(-len(real) // _CENTRE_ROWS)], axis=0)
    sets = [_blocks((features - centre).astype(np.float32), block) for features in (real, samples)]
    radii = [_radii(blocks, neighbours) for blocks in sets]
    return PrecisionRecall(
        precision=_share_inside(sets[1], sets[0], radii[0]),
        recall=_share_inside(sets[0], sets[1], radii[1]),
        neighbours=neighbours,
    )


# Vectors [b, d] and their indices [b] in the whole set, -1 for padding rows of the last block.
_Block = tuple[np.ndarray, np.ndarray]


def _blocks(features: np.ndarray, size: int) -> list[_Block]:
    size = min(size, len(features))
    blocks = []
    for first in range(0, len(features), size):
        rows = features[first : first + size]
        padding = size - len(rows)
        index = np.concatenate([np.arange(first, first + len(rows)), np.full(padding, -1)]).astype(np.int32)
        blocks.append((np.pad(rows, ((0, padding), (0, 0))), index))
    return blocks


def _radii(blocks: list[_Block], neighbours: int) -> list[np.ndarray]:
    """Squared radii by block; -inf for padding rows, whose balls are empty."""
    radii = []
    for rows, index in blocks:
        nearest: jax.Array | np.ndarray = np.full((len(rows), neighbours), np.inf, np.float32)
        for others, other_index in blocks:
            nearest = _nearest(rows, index, others, other_index, nearest)
        radii.append(np.where(index >= 0, np.asarray(nearest).max(axis=1), np.float32(-np.inf)))
    return radii


def _share_inside(points: list[_Block], centres: list[_Block], radii: list[np.ndarray]) -> float:
    covered_count = total = 0
    for rows, index in points:
        covered: jax.Array | np.ndarray = np.zeros(len(rows), bool)
        for (others, _), radius in zip(centres, radii, strict=True):
            covered = _covered(rows, others, radius, covered)
        covered_count += int(np.count_nonzero(np.asarray(covered) & (index >= 0)))
        total += int(np.count_nonzero(index >= 0))
    return covered_count / total


@jax.jit
def _nearest(
    rows: jax.Array, index: jax.Array, others: jax.Array, other_index: jax.Array, nearest: jax.Array
) -> jax.Array:
    """The k smallest squared distances [b, k] of `nearest` and those to another block, without self-distances."""
    excluded = (index[:, None] == other_index[None]) | (other_index < 0)[None]
    distances = jnp.where(excluded, jnp.inf, _squared_distances(rows, others))
    return -jax.lax.top_k(-jnp.concatenate([nearest, distances], axis=1), nearest.shape[1])[0]


@jax.jit
def _covered(rows: jax.Array, centres: jax.Array, radius: jax.Array, covered: jax.Array) -> jax.Array:
    slack = _ROUNDING * _sums_of_squares(rows, centres)
    return covered | jnp.any(_squared_distances(rows, centres) <= radius[None] + slack, axis=1)


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    product = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum(_sums_of_squares(a, b) - 2.0 * product, 0.0)


def _sums_of_squares(a: jax.Array, b: jax.Array) -> jax.Array:
    """|x|^2 + |y|^2 of all pairs."""
    return jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None]


@METRICS.register(
    "pr",
    title="share",
    columns=(Column("precision", "precision", ".4f"), Column("recall", "recall", ".4f")),
)
def precision_recall_metric(samples: FeatureStatistics, real: FeatureStatistics) -> dict[str, float]:
    """Improved precision and recall of the features."""
    shares = precision_recall(real.features, samples.features)
    return {"precision": shares.precision, "recall": shares.recall}
