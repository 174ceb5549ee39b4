"""The parallel Jacobi update, the computation of one iteration between two evaluations of the network."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from starflow_jax.kernels.jacobi_update.reference import (
    Operands,
    OutputHead,
    ReferenceUpdate,
    UpdateCall,
    UpdateImplementation,
)
from starflow_jax.kernels.kernel_choice import UNTIMED_ON_GPUS, Implementation, Support, Target, choose


def chosen(
    out: Float[Array, "rows n outputs"],
    x: Float[Array, "B n c"],
    *,
    head: OutputHead,
    target: Target,
    implementation: Implementation = None,
) -> Literal["xla", "pallas", "cudnn"]:
    """The implementation that `update` runs, never "cudnn"; only shapes and dtypes of the arrays matter."""
    return _choose(UpdateCall.from_arrays(out, x, head, target), implementation)[0]


def update(
    out: Float[Array, "rows n outputs"],
    z: Float[Array, "B n c"],
    x: Float[Array, "B n c"],
    span: Int[Array, "B 2"],
    weight: float | Float[Array, ""] = 0.0,
    first: int | Int[Array, ""] = 0,
    *,
    head: OutputHead,
    target: Target,
    implementation: Implementation = None,
) -> tuple[Float[Array, "B n c"], Float[Array, "B 2"]]:
    """One Jacobi update of a chunk in one pass: a kernel reads every input once and replaces x in place if it can.

    Args:
      out, z, x, span, weight, first: see `reference.Operands`.
      head: how `out` gives mean and scale.
      target: the devices that the program is compiled for.
      implementation: see `kernel_choice.choose`; cuDNN has no such update, so "cudnn" is the same as None.

    Returns:
      The new estimate, and float32 sums over the tokens of `span` and their channels of (new - old)^2 and of new^2.

    Raises:
      ValueError: see `kernel_choice.choose`.
    """
    call = UpdateCall.from_arrays(out, x, head, target)
    name, kernel = _choose(call, implementation)
    if kernel is None or name == "xla":
        # Known weights stay constants of the program.
        return ReferenceUpdate().update(call, Operands(out, z, x, span, weight, first))
    return kernel.update(call, Operands(out, z, x, span.astype(jnp.int32), jnp.float32(weight), jnp.int32(first)))


def _choose(
    call: UpdateCall, implementation: Implementation
) -> tuple[Literal["xla", "pallas", "cudnn"], UpdateImplementation | None]:
    kernel = None if implementation == "xla" else kernel_for(call.target)  # importing it loads Pallas
    support = Support() if kernel is None else kernel.supports(call)
    if call.target.platform == "gpu" and implementation != "pallas" and support:
        support = UNTIMED_ON_GPUS
    return choose("jacobi_update", implementation, call.target, support), kernel


def kernel_for(target: Target) -> UpdateImplementation | None:
    """The kernel of a platform, None where there is none."""
    if target.platform == "tpu":
        from starflow_jax.kernels.jacobi_update.tpu import TPUUpdate

        return TPUUpdate()
    if target.platform == "gpu":
        from starflow_jax.kernels.jacobi_update.gpu import GPUUpdate

        return GPUUpdate()
    return None
