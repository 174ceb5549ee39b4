"""The parallel Jacobi update: what one iteration does between two evaluations of the network.

Soft clip, scale, guidance, x = mean + scale z, what stays as it is, and how far the rest has moved (specification,
sections 1, 3 and 4). The functions here are plain jnp: they are what every solver computes on CPUs, and what the
kernels in `jacobi_update_tpu` and `jacobi_update_gpu` are held against.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from starflow_jax.kernels.choice import KERNEL_PLATFORMS, Implementation, Target, choose

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


def chosen(
    out: jax.Array, x: jax.Array, target: Target, implementation: Implementation = None
) -> Literal["xla", "pallas"]:
    """What `update` runs for a target; only the shapes and types of the arrays matter."""
    reasons: dict[str, str | None] = dict.fromkeys(KERNEL_PLATFORMS)
    # Where a kernel may run only is its module loaded: it loads Pallas.
    if target.platform == "tpu":
        from starflow_jax.kernels.jacobi_update import tpu as jacobi_update_tpu

        reasons["tpu"] = jacobi_update_tpu.refusal(out, x)
    elif target.platform == "gpu":
        from starflow_jax.kernels.jacobi_update import gpu as jacobi_update_gpu

        reasons["gpu"] = jacobi_update_gpu.refusal(out, x, target)
        if implementation is None and reasons["gpu"] is None:
            # Interpreted, and lowered for CUDA, but no GPU has run it: it has to be asked for.
            reasons["gpu"] = "has been timed on no GPU yet; implementation='pallas' asks for it"
    return choose("jacobi_update", implementation, target, reasons)


def update(
    out: jax.Array,
    z: jax.Array,
    x: jax.Array,
    span: jax.Array,
    weight: float | jax.Array = 0.0,
    first: int | jax.Array = 0,
    *,
    reading: Reading,
    target: Target,
    implementation: Implementation = None,
) -> tuple[jax.Array, jax.Array]:
    """One Jacobi update of a chunk, in one pass: every input is read once, and x is replaced in place where it may be.

    Args:
      out: [B, n, 2c] float32 or bfloat16, what the network's last layer says of the chunk's n tokens; under guidance
        [2B, n, 2c], the conditional rows first; c channels instead of 2c where the scale is "unit".
      z: [B, n, c] float32 noise.
      x: [B, n, c] float32, the estimate before.
      span: [B, 2] int32; the tokens span[b, 0] to span[b, 1] - 1 of sample b move, all others (a committed prefix,
        what lies behind the end, a sample that has settled) stay as they are.
      weight: of guidance, [] float32.
      first: place of the chunk's first token in the sequence, [] int32, for a weight that is annealed.
      reading: how `out` is read.
      target: what the program is for.
      implementation: see `choice.choose`.

    Returns:
      The estimate after, and [B, 2] float32: the sums over a sample's moving tokens and their channels of
      (new - old)^2 and of new^2.

    Raises:
      ValueError: see `choice.choose`.
    """
    if chosen(out, x, target, implementation) == "xla":
        return specification(out, z, x, span, weight, first, reading)
    given = (out, z, x, span.astype(jnp.int32), jnp.float32(weight), jnp.int32(first), reading)
    if target.platform == "tpu":
        from starflow_jax.kernels.jacobi_update import tpu as jacobi_update_tpu

        return jacobi_update_tpu.update(*given)
    from starflow_jax.kernels.jacobi_update import gpu as jacobi_update_gpu

    return jacobi_update_gpu.update(*given)
