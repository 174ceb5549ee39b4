"""Mean, scale and guidance inside the kernels, in operations that the TPU's and the GPU's compilers both have.

`flows.affine_head` defines the computation; here log1p, square roots and powers are written out.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from starflow_jax.kernels.jacobi_update.reference import OutputHead

# softplus(_SOFTPLUS_SHIFT) = 1.
_SOFTPLUS_SHIFT = math.log(math.expm1(1.0))


def _log1p(u: jax.Array) -> jax.Array:
    """log(1 + u) for 0 <= u <= 1, exact to rounding: the series of 2 artanh(t) at t = u / (2 + u) <= 1/3.

    Computing 1 + u would lose the low bits of a small u, and compilers simplify compensated sums away.
    """
    t = u / (2.0 + u)
    square = t * t
    total = jnp.full_like(u, 1.0 / 15.0)
    for odd in (13, 11, 9, 7, 5, 3, 1):
        total = total * square + 1.0 / odd
    return 2.0 * t * total


def _softplus(a: jax.Array) -> jax.Array:
    return jnp.maximum(a, 0.0) + _log1p(jnp.exp(-jnp.abs(a)))


def _clip(out: jax.Array, bound: float) -> jax.Array:
    return bound * jnp.tanh(out * (1.0 / bound)) if bound > 0 else out


def _scale(a: jax.Array, head: OutputHead) -> jax.Array:
    a = _clip(a, head.soft_clip)
    return _softplus(a + _SOFTPLUS_SHIFT) if head.scale == "softplus" else jnp.exp(a)


def new_estimate(
    raw: list[tuple[Float[Array, "*tile"] | None, Float[Array, "*tile"]]],
    z: Float[Array, "*tile"],
    weight: Float[Array, "..."],
    head: OutputHead,
) -> Float[Array, "*tile"]:
    """mean + scale z of tiles of one shape, all float32.

    Args:
      raw: the network's output (a, mean), conditional and under guidance then unconditional; a is None where the scale
        is 1.
      z: the noise.
      weight: guidance weight, a scalar or of the tiles' shape.
      head: how `raw` gives mean and scale.
    """
    parts = [(None if a is None else _scale(a, head), _clip(mean, head.soft_clip)) for a, mean in raw]
    scale, mean = parts[0]
    if head.guidance is None:
        return mean + _times(scale, z)
    scale_u, mean_u = parts[1]
    ratio = None if scale is None or scale_u is None else scale / scale_u
    if head.guidance == "ratio":
        s = 1.0 if ratio is None else jnp.square(jnp.minimum(ratio, 1.0))
        weighted = weight * s
        d = 1.0 + weight - weighted
        mean = ((1.0 + weight) * mean - weighted * mean_u) / d
        return mean + _times(scale, z if ratio is None else z * jax.lax.rsqrt(d))
    if "b" in head.guidance:
        mean = mean + weight * (mean - mean_u)
    if scale is not None and ratio is not None and "a" in head.guidance:
        # A weight of 0 leaves the scale unchanged, even where the ratio is not finite.
        scale = jnp.where(weight == 0.0, scale, scale * jnp.exp(weight * jnp.log(ratio)))
    return mean + _times(scale, z)


def _times(scale: jax.Array | None, z: jax.Array) -> jax.Array:
    return z if scale is None else scale * z
