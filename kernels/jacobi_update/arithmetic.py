"""The arithmetic of the Jacobi update inside its kernels, in operations that both of their compilers have.

`jacobi_update` is the specification; here log1p, sqrt and powers are written out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from starflow_jax.kernels.jacobi_update.reference import SOFTPLUS_OF_ONE, Reading


def _log1p(u: jax.Array) -> jax.Array:
    """log(1 + u) for 0 <= u <= 1, exact to rounding: 2 artanh(t) at t = u / (2 + u) <= 1/3, by its series.

    1 + u would lose what is left of a small u, and compilers undo the sums that give it back.
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


def _scale(a: jax.Array, reading: Reading) -> jax.Array:
    a = _clip(a, reading.soft_clip)
    return _softplus(a + SOFTPLUS_OF_ONE) if reading.scale == "softplus" else jnp.exp(a)


def new_estimate(
    raw: list[tuple[jax.Array | None, jax.Array]], z: jax.Array, weight: jax.Array, reading: Reading
) -> jax.Array:
    """mean + scale z of tiles of one shape, all float32.

    Args:
      raw: the network's output (a, mean), conditional and then unconditional where there is guidance; a is None where
        the scale is 1.
      z: the noise.
      weight: of guidance: a scalar or of the tiles' shape.
      reading: how `raw` is read.
    """
    parts = [(None if a is None else _scale(a, reading), _clip(mean, reading.soft_clip)) for a, mean in raw]
    scale, mean = parts[0]
    if reading.guidance is None:
        return mean + _times(scale, z)
    scale_u, mean_u = parts[1]
    ratio = None if scale is None or scale_u is None else scale / scale_u
    if reading.guidance == "ratio":
        s = 1.0 if ratio is None else jnp.square(jnp.minimum(ratio, 1.0))
        share = weight * s
        d = 1.0 + weight - share
        mean = ((1.0 + weight) * mean - share * mean_u) / d
        return mean + _times(scale, z if ratio is None else z * jax.lax.rsqrt(d))
    if "b" in reading.guidance:
        mean = mean + weight * (mean - mean_u)
    if scale is not None and ratio is not None and "a" in reading.guidance:
        # A weight of 0 leaves the scale as it is, whatever the ratio.
        scale = jnp.where(weight == 0.0, scale, scale * jnp.exp(weight * jnp.log(ratio)))
    return mean + _times(scale, z)


def _times(scale: jax.Array | None, z: jax.Array) -> jax.Array:
    return z if scale is None else scale * z
