"""Improved precision and recall: which samples lie among real features, and which real ones among samples.

(Kynkäänniemi et al., arXiv 1904.06991.) The manifold of a set is the union of balls about its vectors, each reaching
to the k-th nearest other one. Precision is the share of samples inside the real manifold, recall the share of real
vectors inside that of the samples. Distances are computed in blocks: no matrix of all pairs is stored.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.evaluation.samples.moments import checked_features

NEIGHBOURS = 3
_BLOCK = 2048
# Squared distances by |x|^2 + |y|^2 - 2 xy in float32 are off by up to about this share of |x|^2 + |y|^2.
_ROUNDING = np.float32(1e-6)
_OF_CENTRE = 1024  # vectors whose median is the origin


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Shares from 0 to 1, and k: which neighbour a ball reaches to."""

    precision: float
    recall: float
    neighbours: int


def precision_recall(
    real: np.ndarray, found: np.ndarray, *, neighbours: int = NEIGHBOURS, block: int = _BLOCK
) -> PrecisionRecall:
    """Of real features [n, d] and of samples' [m, d]; computed in float32 about the real median, on the default device.

    Of two distances that float32 cannot tell apart, a vector counts as inside. That margin is each pair's own and the
    origin is a median, so that a few vectors far away blur no distances among the others.

    Args:
      neighbours: k; each set needs more vectors than that.
      block: rows and columns of distances at a time; they decide memory and speed alone.

    Raises:
      ValueError: features that are none, of two widths, or too few.
    """
    real, found = checked_features(real), checked_features(found)
    check(real.shape[1] == found.shape[1], f"features must have one width, got {real.shape[1]} and {found.shape[1]}")
    check_integer("neighbours", neighbours, minimum=1)
    fewest = min(len(real), len(found))
    check(fewest > neighbours, f"precision and recall need more than {neighbours} vectors of each set, got {fewest}")
    centre = np.median(real[:: -(-len(real) // _OF_CENTRE)], axis=0)
    sets = [_blocks((features - centre).astype(np.float32), block) for features in (real, found)]
    radii = [_radii(blocks, neighbours) for blocks in sets]
    return PrecisionRecall(
        precision=_share_inside(sets[1], sets[0], radii[0]),
        recall=_share_inside(sets[0], sets[1], radii[1]),
        neighbours=neighbours,
    )


# Vectors [b, d] and their places [b] in the whole set, -1 for rows that fill up the last block.
_Block = tuple[np.ndarray, np.ndarray]


def _blocks(features: np.ndarray, block: int) -> list[_Block]:
    block = min(block, len(features))
    cut = []
    for first in range(0, len(features), block):
        rows = features[first : first + block]
        fill = block - len(rows)
        places = np.concatenate([np.arange(first, first + len(rows)), np.full(fill, -1)]).astype(np.int32)
        cut.append((np.pad(rows, ((0, fill), (0, 0))), places))
    return cut


def _radii(blocks: list[_Block], neighbours: int) -> list[np.ndarray]:
    """Squared, by block; below 0 for filling, whose balls hold nothing."""
    radii = []
    for rows, places in blocks:
        nearest: jax.Array | np.ndarray = np.full((len(rows), neighbours), np.inf, np.float32)
        for others, other_places in blocks:
            nearest = _nearest(rows, places, others, other_places, nearest)
        radii.append(np.where(places >= 0, np.asarray(nearest).max(axis=1), np.float32(-np.inf)))
    return radii


def _share_inside(points: list[_Block], centres: list[_Block], radii: list[np.ndarray]) -> float:
    inside = total = 0
    for rows, places in points:
        covered: jax.Array | np.ndarray = np.zeros(len(rows), bool)
        for (others, _), reach in zip(centres, radii, strict=True):
            covered = _covered(rows, others, reach, covered)
        inside += int(np.count_nonzero(np.asarray(covered) & (places >= 0)))
        total += int(np.count_nonzero(places >= 0))
    return inside / total


@jax.jit
def _nearest(
    rows: jax.Array, places: jax.Array, others: jax.Array, other_places: jax.Array, nearest: jax.Array
) -> jax.Array:
    """The k smallest squared distances [b, k] of those known and those to another block, one's own left out."""
    own = (places[:, None] == other_places[None]) | (other_places < 0)[None]
    distances = jnp.where(own, jnp.inf, _squared_distances(rows, others))
    return -jax.lax.top_k(-jnp.concatenate([nearest, distances], axis=1), nearest.shape[1])[0]


@jax.jit
def _covered(rows: jax.Array, centres: jax.Array, reach: jax.Array, covered: jax.Array) -> jax.Array:
    slack = _ROUNDING * _sums_of_squares(rows, centres)
    return covered | jnp.any(_squared_distances(rows, centres) <= reach[None] + slack, axis=1)


def _squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    product = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum(_sums_of_squares(a, b) - 2.0 * product, 0.0)


def _sums_of_squares(a: jax.Array, b: jax.Array) -> jax.Array:
    """|x|^2 + |y|^2 of all pairs."""
    return jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None]
