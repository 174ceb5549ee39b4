"""The specification of the parallel Jacobi update in plain jnp.

Soft clip, scale, guidance, x = mean + scale z, which tokens move, and by how much (specification, sections 1, 3 and 4).
Solvers compute this on CPUs, and the kernels in `tpu` and `gpu` are tested against it.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

# softplus^-1(1), so that a = 0 means scale 1 (specification, section 1.5).
SOFTPLUS_OF_ONE = 0.541324854612918


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the network's output is read as mean and scale; static.

    Attributes:
      scale: "softplus" or "exp" of the first half of the channels; "unit": all channels are means, the scale is 1.
      soft_clip: bound of the output, 0 for none.
      guidance: None, or how the second half of the rows guides the first: "ratio" (STARFlow, specification, section 3)
        or TARFlow's extrapolation of log scale ("a"), mean ("b") or both ("ab").
      annealed: N where token j of N is guided with weight j / (N - 1) times the given one, else 0.
    """

    scale: Literal["softplus", "exp", "unit"] = "softplus"
    soft_clip: float = 0.0
    guidance: Literal["ratio", "ab", "a", "b"] | None = None
    annealed: int = 0

    @property
    def halves(self) -> int:
        """Rows of output for a row of the result."""
        return 1 if self.guidance is None else 2


def soft_clip(out: jax.Array, bound: float) -> jax.Array:
    """bound * tanh(out / bound); unchanged where bound is 0."""
    return bound * jnp.tanh(out / bound) if bound > 0 else out


def mean_and_scale(out: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    """Mean and scale [B, n, c] float32 of clipped output [B, n, 2c] (first half a, second the mean; c for "unit")."""
    out = out.astype(jnp.float32)
    if kind == "unit":
        return out, jnp.ones_like(out)
    a, mean = jnp.split(out, 2, axis=-1)
    return mean, jax.nn.softplus(a + SOFTPLUS_OF_ONE) if kind == "softplus" else jnp.exp(a)


def guided_by_ratio(
    mean: jax.Array, scale: jax.Array, mean_u: jax.Array, scale_u: jax.Array, weight: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """STARFlow's guidance (specification, section 3) of mean and scale by those of the unconditional pass."""
    w = jnp.float32(weight)
    s = jnp.minimum(scale / scale_u, 1.0) ** 2
    d = 1.0 + w - w * s
    return ((1.0 + w) * mean - w * s * mean_u) / d, scale / jnp.sqrt(d)


def guided_linearly(
    mean: jax.Array, scale: jax.Array, mean_u: jax.Array, scale_u: jax.Array, weight: jax.Array, what: str
) -> tuple[jax.Array, jax.Array]:
    """TARFlow's guidance, v + w (v - v_u), of the mean, the log scale or both; weight: [] or [n, 1]."""
    if "b" in what:
        mean = mean + weight * (mean - mean_u)
    if "a" in what:
        scale = scale * (scale / scale_u) ** weight
    return mean, scale


def annealed(weight: float | jax.Array, index: jax.Array, count: int) -> jax.Array:
    """The weight of the tokens at places `index` of `count` that grows along the sequence: [n, 1]."""
    return (jnp.float32(weight) * index / max(count - 1, 1))[:, None]


def predicted(
    out: jax.Array, weight: float | jax.Array, first: int | jax.Array, reading: Reading
) -> tuple[jax.Array, jax.Array]:
    """Mean and scale [B, n, c] float32; arguments as in `update`."""
    mean, scale = mean_and_scale(soft_clip(out.astype(jnp.float32), reading.soft_clip), reading.scale)
    if reading.guidance is None:
        return mean, scale
    (mean, mean_u), (scale, scale_u) = (jnp.split(a, 2, axis=0) for a in (mean, scale))
    if reading.guidance == "ratio":
        return guided_by_ratio(mean, scale, mean_u, scale_u, weight)
    w = jnp.float32(weight)
    if reading.annealed:
        w = annealed(w, first + jnp.arange(out.shape[1]), reading.annealed)
    return guided_linearly(mean, scale, mean_u, scale_u, w, reading.guidance)


def moved(new: jax.Array, x: jax.Array, span: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`new` where `span` lets a token move, else `x`; and the sums: arguments and results as in `update`."""
    index = jnp.arange(x.shape[1])
    moves = ((index >= span[:, :1]) & (index < span[:, 1:]))[:, :, None]
    change = jnp.sum(jnp.where(moves, new - x, 0.0) ** 2, axis=(1, 2))
    size = jnp.sum(jnp.where(moves, new, 0.0) ** 2, axis=(1, 2))
    return jnp.where(moves, new, x), jnp.stack([change, size], axis=1)


def specification(
    out: jax.Array,
    z: jax.Array,
    x: jax.Array,
    span: jax.Array,
    weight: float | jax.Array,
    first: int | jax.Array,
    reading: Reading,
) -> tuple[jax.Array, jax.Array]:
    """`update` in plain jnp."""
    mean, scale = predicted(out, weight, first, reading)
    return moved(mean + scale * z, x, span)
