"""Exact log-likelihoods of held-out images under uniform dequantisation, and bits/dim with its uncertainty.

The noise of an image depends only on the key, the index of the draw and the index of the image in its source. A score
therefore does not depend on the batch size, and several models can be scored with the same noise.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check_integer
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data import Source, bits_per_dim, eval_batches
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.sharding.layout import Layout, gathered, placed, spread, tree_layout
from starflow_jax.training.step.inputs import condition


@dataclasses.dataclass(frozen=True)
class BitsPerDim:
    """Bits/dim of a set of images, with standard errors.

    Attributes:
      mean: over images and draws.
      image_error: standard error of the mean over images, each image's draws averaged first: how far the mean
        may be from that of all images of the kind.
      draw_error: standard error of the mean over draws, each draw's images averaged first: how far it may be
        from its expectation over the noise for these images. Both NaN where there is one value only.
      images, draws: scored; dims: numbers in an image; levels: values of each.
    """

    mean: float
    image_error: float
    draw_error: float
    images: int
    draws: int
    dims: int
    levels: int

    @classmethod
    def from_log_probs(cls, log_probs: np.ndarray, dims: int, levels: int) -> BitsPerDim:
        """Computes bits/dim from log densities in nats, [draws, n], of data scaled by `data.dequantise`."""
        bits = bits_per_dim(np.asarray(log_probs, np.float64), dims, levels)
        draws, images = bits.shape
        return cls(
            mean=float(bits.mean()),
            image_error=standard_error(bits.mean(axis=0)),
            draw_error=standard_error(bits.mean(axis=1)),
            images=images,
            draws=draws,
            dims=dims,
            levels=levels,
        )


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of independent values [n]; NaN for one value, or where a value is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    with np.errstate(over="ignore"):  # squares of large finite values
        return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def dequantised(key: jax.Array, images: jax.Array, index: jax.Array, draw: jax.Array | int, levels: int) -> jax.Array:
    """Images with the noise of one draw. Traceable.

    Args:
      key: of all draws.
      images: integers [B, H, W, C], values in `0 .. levels - 1`.
      index: int32 [B], of each image in its source.
      draw: index of the draw.

    Returns:
      float32 [B, H, W, C] in [-1, 1).
    """
    draw_key = jax.random.fold_in(key, draw)
    keys = jax.vmap(lambda index: jax.random.fold_in(draw_key, index))(index)
    noise = jax.vmap(lambda k: jax.random.uniform(k, images.shape[1:]))(keys)
    return dequantise(images, noise, levels)


def all_dequantised(key: jax.Array, source: Source, draws: int) -> np.ndarray:
    """Every draw of every image, float32 [draws, n, H, W, C], for models that score all at once.

    For the same key these are the values that `log_probs` scores.
    """
    check_integer("draws", draws, minimum=1)
    images = jnp.asarray(np.stack([source[index]["image"] for index in range(len(source))]))
    index = jnp.arange(len(source))
    one = jax.jit(lambda draw: dequantised(key, images, index, draw, source.levels))
    return np.stack([np.asarray(one(draw)) for draw in range(draws)])


def log_probs(
    params: Params,
    config: FlowConfig,
    source: Source,
    key: jax.Array,
    *,
    draws: int,
    batch_size: int = 256,
    labels: np.ndarray | None = None,
    noise_level: float | None = None,
) -> np.ndarray:
    """log p(x | label) of every image and draw, in nats.

    Args:
      params: of a flow of `config`, as `flows.parameters.split` gives them.
      source: images; each is scored once for every draw.
      key: of the noise.
      draws: number of times that every image is dequantised.
      batch_size: images scored at a time; the last batch is padded.
      labels: int32 [m], labels that every image is scored with; None for its own.
      noise_level: that a noise-conditioned flow reads; None for its highest one.

    Returns:
      float64 [draws, n], with `labels` [draws, n, m]. A flow that reads no condition ignores labels.

    Raises:
      ValueError: draws or batch_size below 1.
    """
    check_integer("draws", draws, minimum=1)
    check_integer("batch_size", batch_size, minimum=1)
    batch_size = min(batch_size, len(source))
    log_p = np.empty((draws, len(source), 1 if labels is None else len(labels)))
    layout = tree_layout(params)
    key, first = spread(layout, key), 0
    level = None if noise_level is None else np.float32(noise_level)
    for batch in eval_batches(source, batch_size):
        count = int(batch["valid"].sum())
        index = np.arange(first, first + batch_size, dtype=np.int32)
        given = np.asarray(labels, np.int32)[:, None] if labels is not None else batch["label"][None]
        batch_labels = np.broadcast_to(given, (len(given), batch_size))
        for draw in range(draws):
            rows = spread(layout, (batch["image"], index, batch_labels))
            scalars = spread(layout, (draw, level))
            scores = _scores(config, source.levels, layout, params, key, *scalars, rows)
            log_p[draw, first : first + count] = np.asarray(scores, np.float64).T[:count]
        first += count
    return log_p[..., 0] if labels is None else log_p


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _scores(
    config: FlowConfig,
    levels: int,
    layout: Layout | None,
    params: Params,
    key: jax.Array,
    draw: jax.Array | int,
    noise_level: jax.Array | float | None,
    rows: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:
    """log p(x | label) [m, B] of a batch of images, their indices [B], and labels [m, B]."""
    images, index, labels = rows
    flow = merge(abstract(config, layout)[0], params)
    x = placed(layout, dequantised(key, images, index, draw, levels), "batch")

    def log_prob(row: jax.Array) -> jax.Array:
        return flow.log_prob(x, condition(row, config), noise_level=noise_level)

    return gathered(layout, jax.lax.map(log_prob, labels))
