"""The derivatives of attention kernels.

The first derivative in reverse is the kernel's own backward pass: it recomputes the weights, and nothing of the size
queries x keys is stored. That gradient can be differentiated in reverse again, any number of times, as a loss does that
contains the gradient of a likelihood; these higher derivatives are the reference's. Forward-mode differentiation of a
kernel raises JAX's error: use implementation="xla".
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from starflow_jax.kernels.attention.call import (
    AttentionCall,
    AttentionKernel,
    Bounds,
    Gradients,
    Residuals,
    select_layer,
)
from starflow_jax.kernels.attention.reference import ReferenceAttention

# The names by which policies of rematerialisation know what the backward pass reads: query, key and value; and the
# output with its lse. Where the latter are saved, the forward pass does not run again.
OPERANDS_NAME, RESULTS_NAME = "attention_operands", "attention_results"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
    kernel: AttentionKernel,
    call: AttentionCall,
    query: Float[Array, "B h n d"],
    key: Float[Array, "*layers B k S d"],
    value: Float[Array, "*layers B k S d"],
    traced: Int[Array, "3"],
) -> tuple[Float[Array, "B h n d"], Float[Array, "B h ... n"] | None]:
    """`kernel.forward`, with derivatives with respect to query, key and value; the second result is not differentiated.

    Args:
      kernel, call: the implementation, and the call that it prepared.
      query, key, value: see `AttentionKernel.forward`.
      traced: int32 [offset, length, layer], for those that are None in `call`.
    """
    return kernel.forward(call, query, key, value, call.bounds(traced))


def _attend_forward(
    kernel: AttentionKernel,
    call: AttentionCall,
    query: Float[Array, "B h n d"],
    key: Float[Array, "*layers B k S d"],
    value: Float[Array, "*layers B k S d"],
    traced: Int[Array, "3"],
) -> Any:
    # A second derivative differentiates this rule, so it calls the function that has a derivative.
    query, key, value = (_named(call, array, OPERANDS_NAME) for array in (query, key, value))
    out, lse = attend(kernel, call, query, key, value, traced)
    out, lse = _named(call, out, RESULTS_NAME), None if lse is None else checkpoint_name(lse, RESULTS_NAME)
    return (out, lse), (query, key, value, out, lse, traced)


def _named(call: AttentionCall, array: Float[Array, "*B n d"], name: str) -> Float[Array, "*B n d"]:
    """The array, under a name for policies; TPUs, which would pad heads of 64 channels to 128, save it transposed."""
    if call.target.platform != "tpu":
        return checkpoint_name(array, name)
    return jnp.swapaxes(checkpoint_name(jnp.swapaxes(array, -1, -2), name), -1, -2)


def _attend_backward(kernel: AttentionKernel, call: AttentionCall, saved: Any, cotangents: Any) -> Any:
    query, key, value, out, lse, traced = saved
    bounds = call.bounds(traced)
    residuals = Residuals(query, select_layer(key, bounds), select_layer(value, bounds), out, lse)
    dq, *gradients = _gradients(kernel, call, residuals, cotangents[0], traced)
    if call.stacked:
        gradients = [
            jnp.zeros_like(cache).at[traced[2]].set(gradient)
            for cache, gradient in zip((key, value), gradients, strict=True)
        ]
    return dq, *gradients, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(
    kernel: AttentionKernel,
    call: AttentionCall,
    residuals: Residuals,
    do: Float[Array, "B h n d"],
    traced: Int[Array, "3"],
) -> Gradients:
    """dq, dk, dv as a function of query, key, value [B, k, S, d] and `do`.

    `out` and `lse` are functions of the others, whose derivatives include the terms through them.
    """
    return kernel.backward(call, residuals, do, _single_layer_bounds(call.bounds(traced)))


def _gradients_forward(
    kernel: AttentionKernel,
    call: AttentionCall,
    residuals: Residuals,
    do: Float[Array, "B h n d"],
    traced: Int[Array, "3"],
) -> Any:
    return _gradients(kernel, call, residuals, do, traced), (residuals, do, traced)


def _gradients_backward(kernel: AttentionKernel, call: AttentionCall, saved: Any, cotangents: Any) -> Any:
    residuals, do, traced = saved
    bounds = _single_layer_bounds(call.bounds(traced))

    def reference(
        query: Float[Array, "B h n d"],
        key: Float[Array, "B k S d"],
        value: Float[Array, "B k S d"],
        do: Float[Array, "B h n d"],
    ) -> Gradients:
        return ReferenceAttention().backward(call, residuals._replace(query=query, key=key, value=value), do, bounds)

    query, key, value, out, lse = residuals
    *by_arrays, by_do = jax.vjp(reference, query, key, value, do)[1](cotangents)
    zeros = jax.tree.map(jnp.zeros_like, (out, lse))
    return Residuals(*by_arrays, *zeros), by_do, None


def _single_layer_bounds(bounds: Bounds) -> Bounds:
    return bounds._replace(layer=None)


attend.defvjp(_attend_forward, _attend_backward)
_gradients.defvjp(_gradients_forward, _gradients_backward)
