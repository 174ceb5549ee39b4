"""Weighted draws: what they are worth, and their resampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def systematic(key: PRNGKeyArray, log_weights: Float[Array, "n"], num: int) -> Int[Array, "num"]:
    """Indices of systematic resampling: draw i occurs num * w_i times, rounded up or down.

    Args:
      key: of the one uniform number that all of it needs.
      log_weights: in nats, up to a constant; -inf for draws that never occur. One must be above -inf.
      num: of indices.
    """
    points = (jax.random.uniform(key) + jnp.arange(num)) / num
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    # Divided by the last sum, which rounding keeps from 1; "right" passes over draws of weight 0.
    index = jnp.searchsorted(cumulative / cumulative[-1], points, side="right")
    return jnp.minimum(index, len(log_weights) - 1)


def effective_sample_size(log_weights: Float[Array, "*rows n"]) -> Float[Array, "*rows"]:
    """Kish's effective sample size (sum w)^2 / sum w^2 of each row, from 1 to n.

    Args:
      log_weights: in nats, up to a constant; one of a row must be above -inf.
    """
    return 1.0 / jnp.sum(jax.nn.softmax(log_weights, axis=-1) ** 2, axis=-1)
