"""The noise level of every training example of a noise-conditioned flow, and the weight of its loss."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from starflow_jax.core.choices import LevelDistribution, LevelWeight

# Mean and standard deviation of log t in the distribution "edm" (arXiv 2206.00364).
_EDM_MEAN, _EDM_STD = -1.2, 1.0


@flax.struct.dataclass
class Levels:
    """The noise levels of a batch, and the weights of its losses, both float32 [B]."""

    level: jax.Array
    weight: jax.Array


def draw_levels(
    key: jax.Array, batch: int, span: tuple[float, float], distribution: LevelDistribution, weight: LevelWeight
) -> Levels:
    """Noise levels t in (t0, t1) = `span` of a batch, independent of one another, and weights.

    Args:
      key: of the levels.
      batch: B.
      span: t0 and t1.
      distribution: "uniform"; "linear", t^2 uniform in (t0^2, t1^2); or "edm", log t normal with mean -1.2 and
        deviation 1, truncated to (t0, t1).
      weight: of the loss of an example: "ones", "level" (t), "square" (t^2), or "normalised" (t divided by the mean of
        the batch).
    """
    low, high = span
    if distribution == "edm":
        lower, upper = ((jnp.log(edge) - _EDM_MEAN) / _EDM_STD for edge in span)
        level = jnp.exp(_EDM_MEAN + _EDM_STD * jax.random.truncated_normal(key, lower, upper, (batch,)))
    else:
        share = jax.random.uniform(key, (batch,))
        if distribution == "uniform":
            level = low + (high - low) * share
        else:
            level = jnp.sqrt(low**2 + (high**2 - low**2) * share)
    level = jnp.clip(level, low, high)  # rounding
    if weight == "ones":
        return Levels(level, jnp.ones_like(level))
    if weight == "square":
        return Levels(level, level**2)
    return Levels(level, level / jnp.mean(level) if weight == "normalised" else level)
