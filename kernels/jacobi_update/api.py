"""The parallel Jacobi update: what one iteration does between two evaluations of the network.

`update` runs the specification (`reference`) or the kernel of the target platform.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from starflow_jax.kernels.choice import KERNEL_PLATFORMS, Implementation, Target, choose
from starflow_jax.kernels.jacobi_update.reference import Reading, specification


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
