"""Removal of the training noise over many noise levels, by a noise-conditioned flow (specification, section 6)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.core.choices import DenoiseStep
from starflow_jax.core.config.checks import check

# Clean data from noisy data and the level t of the noise.
Estimate = Callable[[jax.Array, jax.Array], jax.Array]


def iterative_denoise(
    estimate: Estimate,
    x: Float[Array, "B *size"],
    span: tuple[float, float],
    num_levels: int | Int[Array, ""],
    *,
    step: DenoiseStep = "ode",
    clip: bool = False,
    noise: Callable[[Int[Array, ""]], Float[Array, "B *size"]] | None = None,
) -> Float[Array, "B *size"]:
    """Goes from noise of level t1 to data, over levels that are evenly spaced from t1 to t0 and then 0.

    At a level t the data are estimated, x0 = estimate(x, t), and x moves towards the next level t': along the line
    through x0 and x ("ode": x0 + t' (x - x0) / t), or to a sample of the noisy data at t' given x and x0 ("sde": x0 +
    (t' / t)^2 (x - x0) + t' sqrt(1 - (t' / t)^2) noise). From the last level it goes to x0. All levels run in one loop
    of one program, which serves any number of them.

    Args:
      estimate: for example Tweedie's formula, `denoise.score_denoise`, of a noise-conditioned flow.
      x: float32, data with noise of level t1.
      span: t0 and t1.
      num_levels: N, at least 1; of one level, t1, the result is the estimate. It may be traced.
      step: "ode" or "sde".
      clip: whether estimates are clipped to [-1, 1].
      noise: standard normal noise of the step from level i (0 for t1), for "sde".

    Raises:
      ValueError: steps of kind "sde" without noise.
    """
    check(step != "sde" or noise is not None, "noise must be given for step 'sde', got None")
    low, high = (jnp.float32(edge) for edge in span)
    count = jnp.asarray(num_levels, jnp.int32)

    def level(index: Int[Array, ""]) -> Float[Array, ""]:
        """Level `index` of N, and 0 after the last."""
        share = index / jnp.maximum(count - 1, 1)
        return jnp.where(index < count, high + (low - high) * share, 0.0)

    def move(index: Int[Array, ""], x: Float[Array, "B *size"]) -> Float[Array, "B *size"]:
        now, then = level(index), level(index + 1)
        clean = estimate(x, now)
        if clip:
            clean = jnp.clip(clean, -1.0, 1.0)
        ratio = then / now
        if step == "ode":
            return clean + ratio * (x - clean)
        assert noise is not None  # checked above
        return clean + ratio**2 * (x - clean) + then * jnp.sqrt(1.0 - ratio**2) * noise(index)

    result: jax.Array = jax.lax.fori_loop(0, count, move, x.astype(jnp.float32))
    return result
