"""Maps of likelihood ratios: where in an image two densities of it differ.

The log-likelihood of an image is a sum over its tokens (`likelihood.frame_likelihood`), and so is the logarithm of the
ratio of two likelihoods, of two models or of two conditions of one model. As a picture this is the map of Ren et al.
(arXiv 1906.02845), whose autoregressive model gives log p(x_i | x_<i) - log p_0(x_i | x_<i) at every pixel. A flow of
one block gives that, too, in the order of the block. In a flow of several blocks a token's share is no conditional
density: log N of its z and the log-determinants at its position depend on other tokens. The sum over tokens is exact.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.likelihood.frame_likelihood import token_terms
from starflow_jax.evaluation.likelihood.image_likelihood import dequantised
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.training.step.inputs import condition


def token_map(
    params: Params,
    config: FlowConfig,
    source: ArraySource,
    key: jax.Array,
    rows: np.ndarray,
    labels: np.ndarray,
    *,
    draws: int,
    batch_size: int = 64,
    noise_level: float | None = None,
) -> np.ndarray:
    """log2 p(x | label) of images, split over their tokens and averaged over draws of the dequantisation noise.

    Args:
      params: of a flow of `config`; key: of the noise, which is that of `log_probs` of this source for this key.
      source: images; rows: int [n], the indices of those that are mapped, at least one.
      labels: int [n], the condition of each; a flow without classes ignores them.
      draws: number of times that every image is dequantised; batch_size: images at a time, the last batch is padded.
      noise_level: that a noise-conditioned flow reads; None for its highest one.

    Returns:
      float64 bits [n, h, w], h and w the rows and columns of tokens.

    Raises:
      ValueError: no rows, labels of another number, or draws or batch_size below 1.
    """
    check_integer("draws", draws, minimum=1)
    check_integer("batch_size", batch_size, minimum=1)
    rows, labels = np.asarray(rows, np.int32), np.asarray(labels, np.int32)
    check(
        rows.ndim == 1 and rows.size > 0 and rows.shape == labels.shape,
        f"rows and labels must be [n] with n above 0, got {list(rows.shape)} and {list(labels.shape)}",
    )
    batch_size, parts = min(batch_size, len(rows)), []
    for first in range(0, len(rows), batch_size):
        batch = np.resize(np.arange(first, min(first + batch_size, len(rows))), batch_size)
        given = (source.images[rows[batch]], rows[batch], labels[batch])
        of_draws = [
            np.asarray(_nats(config, source.levels, params, key, draw, noise_level, *given), np.float64)
            for draw in range(draws)
        ]
        parts.append(np.mean(of_draws, axis=0))
    return np.asarray(np.concatenate(parts)[: len(rows)] / math.log(2.0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _nats(
    config: FlowConfig,
    levels: int,
    params: Params,
    key: jax.Array,
    draw: jax.Array | int,
    noise_level: jax.Array | float | None,
    images: jax.Array,
    index: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """The terms of one draw, summed over blocks: float32 [B, h, w]."""
    flow = merge(abstract(config)[0], params)
    x = dequantised(key, images, index, draw, levels)
    return sum(token_terms(flow, x, condition(labels, config), noise_level=noise_level), jnp.float32(0))


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The ratio of two maps of the same images, in bits, on the finest grid whose cells are whole tokens of both.

    Args:
      one, other: as `token_map` returns them, [n, h, w] and [n, h', w'].

    Raises:
      ValueError: another number of images, or grids of different proportions.
    """
    (count, h, w), (other_count, other_h, other_w) = one.shape, other.shape
    rows, columns = math.gcd(h, other_h), math.gcd(w, other_w)
    check(
        count == other_count and h * other_w == other_h * w,
        f"maps must be of the same images, got {list(one.shape)} and {list(other.shape)}",
    )
    return np.asarray(_pooled(one, rows, columns) - _pooled(other, rows, columns))


def _pooled(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    n, h, w = values.shape
    return np.asarray(values.reshape(n, rows, h // rows, columns, w // columns).sum(axis=(2, 4)))
