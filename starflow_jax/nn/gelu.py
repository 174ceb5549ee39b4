"""The exact GELU, x Phi(x) with the normal distribution function Phi.

In float32 it is computed with `erfc`: two polynomials, a division, an exponential and a choice between branches. On
TPUs that is more work for the vector units than the dense layer around it is for the matrix units. In bfloat16 the
logarithm of Phi(-t), t >= 0, is a polynomial of degree 7 here. There is no division and no branch, and in the tail,
where Phi is smaller than a rounding error of 1, the relative error is the same. The derivative is Phi(x) + x phi(x),
from the same exponential and one more. docs/performance.md compares the forms that were compiled.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The coefficients of 1, t, t^2, ... of log Phi(-t), 0 <= t <= 13.2, that make the largest error smallest; from there on
# x Phi(x) is smaller than the smallest normal number. The error is that of Phi(-t) relative to Phi(-t), to Phi(t), and
# to the derivative Phi(-t) - t phi(t) at numbers t of bfloat16, whichever is the smallest: at most 2^-10.6.
# The last coefficient is negative, so the polynomial goes to -infinity, and Phi to 0, beyond 13.2.
_LOG_PHI = (
    -6.93762786e-01, -7.93267338e-01, -3.26538058e-01, -3.13319840e-02,
    3.89504279e-03, -3.02126438e-04, 1.29933312e-05, -2.35021540e-07,
)  # fmt: skip
_LOG_DENSITY_AT_ZERO = -0.918938533  # -log(2 pi) / 2


def gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The exact GELU of x, in the dtype of x.

    In bfloat16, value and derivative are within one rounding of the exact ones for every finite x, results below the
    smallest normal number aside (of an infinite x they are NaN), and both can be differentiated, in any mode and any
    number of times. In other dtypes it is `jax.nn.gelu(x, approximate=False)`.
    """
    return _rounded(x) if x.dtype == jnp.bfloat16 else jax.nn.gelu(x, approximate=False)


def _tail(distance: jax.Array) -> jax.Array:
    """Phi(-distance) in float32."""
    log_tail = jnp.float32(_LOG_PHI[-1])
    for coefficient in _LOG_PHI[-2::-1]:
        log_tail = log_tail * distance + jnp.float32(coefficient)
    return jnp.exp(log_tail)


def _density(x: jax.Array) -> jax.Array:
    """phi of x in float32."""
    return jnp.exp(-0.5 * x * x + _LOG_DENSITY_AT_ZERO)


@jax.custom_jvp
def _rounded(x: jax.Array) -> jax.Array:
    """x Phi(x) = max(x, 0) - |x| Phi(-|x|), without a choice between branches."""
    wide = x.astype(jnp.float32)
    distance = jnp.abs(wide)
    return (jnp.maximum(wide, 0) - distance * _tail(distance)).astype(x.dtype)


@jax.custom_jvp
def _derivative(x: jax.Array) -> jax.Array:
    """Phi(x) + x phi(x): r = Phi(-|x|) - |x| phi(x) below 0, and 1 - r above."""
    wide = x.astype(jnp.float32)
    distance = jnp.abs(wide)
    bits = jax.lax.bitcast_convert_type(wide, jnp.uint32)
    sign = jax.lax.bitcast_convert_type(bits & jnp.uint32(0x80000000) | jnp.uint32(0x3F800000), jnp.float32)
    below = _tail(distance) - distance * _density(wide)
    return (jnp.maximum(sign, 0) - sign * below).astype(x.dtype)


# Each derivative is stated, since that of the polynomial is less exact, and |x| has none at 0.
@_rounded.defjvp
def _rounded_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    return _rounded(x), _derivative(x) * tangent


@_derivative.defjvp
def _derivative_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    wide = jnp.clip(x.astype(jnp.float32), -16, 16)  # beyond, the density is 0, and the square may be infinite
    return _derivative(x), ((2 - wide * wide) * _density(wide)).astype(x.dtype) * tangent
