"""Dense layers and norms."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from starflow_jax.core.choices import Quantisation
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.kernels.kernel_choice import Implementation
from starflow_jax.sharding.layout import Layout, kernel_cuts
from starflow_jax.sharding.rules import Spec


@dataclasses.dataclass(frozen=True)
class Compute:
    """Numerics and placement of matrix products.

    Attributes:
      dtype: of the operands.
      precision: of float32 products on accelerators.
      layout: over several devices; None on one.
      kernels: of attention and of the Jacobi update: "xla", "pallas", "cudnn" (of attention without a cache), or None
        for the rule of `kernel_choice`.
      cache: how a mesh divides the caches of attention, `FlowConfig.cache`.
      quantise: how the layers of a transformer store their kernels; None for float32.
    """

    dtype: str = "float32"
    precision: str = "highest"
    layout: Layout | None = None
    kernels: Implementation = None
    cache: str = "auto"
    quantise: Quantisation | None = None

    @classmethod
    def from_config(cls, config: FlowConfig, layout: Layout | None) -> Compute:
        """The numerics of a flow's configuration."""
        kernels = None if config.kernels == "auto" else config.kernels
        return cls(config.dtype, config.matmul_precision, layout, kernels, config.cache)

    def of_layers(self, config: FlowConfig) -> Compute:
        """The same for the layers of a flow's transformers, whose kernels may be quantised."""
        return dataclasses.replace(self, quantise=config.quantise)


class Linear(nnx.Module):
    """x @ kernel + bias.

    The kernel is [inputs, *outputs] in float32; the product is computed in `compute.dtype`. The kernel is initialised
    normal with standard deviation `std` (default inputs^-1/2), the bias with zeros.

    Args:
      inputs: channels.
      outputs: channels, as one axis or several.
      key: of the initial kernel.
      name: name of the layer in `sharding.rules`.
      bias: whether there is one.
      std: standard deviation of the initial kernel.
      compute: numerics and placement.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | tuple[int, ...],
        key: PRNGKeyArray,
        *,
        name: str,
        bias: bool = True,
        std: float | None = None,
        compute: Compute = Compute(),
    ):
        std = inputs**-0.5 if std is None else std
        shape = (outputs,) if isinstance(outputs, int) else outputs
        self.kernel = nnx.Param(std * jax.random.normal(key, (inputs, *shape)))
        self.bias = nnx.Param(jnp.zeros(shape)) if bias else None
        self.name = name
        self.compute = compute

    def __call__(self, x: Shaped[Array, "*B inputs"]) -> Float[Array, "..."]:
        """[..., inputs] to [..., *outputs] in `compute.dtype`."""
        return self._dense(x, None if self.bias is None else self.bias[...])

    def product(self, x: Shaped[Array, "*B inputs"]) -> Float[Array, "..."]:
        """As a call, without the bias."""
        return self._dense(x, None)

    def _dense(self, x: Shaped[Array, "*B inputs"], bias: Float[Array, "*outputs"] | None) -> Float[Array, "..."]:
        kernel, dtype = self.kernel[...], self.compute.dtype
        if self.compute.layout is not None:
            return sharded_dense(self.compute, self.name, x.astype(dtype), kernel, bias)
        inputs, *outputs = kernel.shape
        # Two-dimensional operands: XLA's CPU backend runs a 3-D weight gradient at a third of the speed.
        flat, columns = x.astype(dtype).reshape(-1, inputs), kernel.astype(dtype).reshape(inputs, math.prod(outputs))
        out = jnp.dot(flat, columns, precision=self.compute.precision)
        if bias is not None:
            out = out + bias.astype(dtype).reshape(-1)
        return out.reshape(*x.shape[:-1], *outputs)

    def ready(self) -> Linear:
        """The layer with kernel and bias as its product reads them: in `compute.dtype`, and gathered over fsdp.

        Its outputs are those of this layer, bit by bit. A barrier keeps compilers from moving the cast or the transfer
        back to where the layer is used, which may be in a loop. See `ready_parameters.ready_for_inference`.
        """
        dtype, layout = self.compute.dtype, self.compute.layout
        if dtype == "float32" and (layout is None or layout.size("fsdp") == 1):
            return self

        def prepared(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            leaf = leaf.astype(dtype)
            is_kernel = layout is not None and path[0].name == "kernel"
            return _gathered(self.compute, self.name, leaf) if is_kernel else leaf

        layer: Linear = jax.lax.optimization_barrier(jax.tree_util.tree_map_with_path(prepared, self))
        return layer


# Input, kernel and bias, saved for the backward pass.
_Residuals = tuple[jax.Array, jax.Array, jax.Array | None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sharded_dense(
    compute: Compute,
    name: str,
    x: Float[Array, "*B inputs"],
    kernel: Float[Array, "inputs *outputs"],
    bias: Float[Array, "*outputs"] | None,
) -> Float[Array, "..."]:
    """The dense layer over a mesh, with an explicit backward pass.

    The kernel is gathered over fsdp in the dtype of the product, again in the backward pass, and its gradient is
    reduce-scattered over devices in float32.
    """
    out = _project(compute, name, x, kernel)
    return out if bias is None else out + bias.astype(out.dtype)


def _gathered(compute: Compute, name: str, kernel: jax.Array) -> jax.Array:
    assert compute.layout is not None  # callers run on several devices
    return compute.layout.constrain(kernel.astype(compute.dtype), kernel_cuts(name, kernel.ndim)[1])


def _summed_in(compute: Compute, cuts: Sequence[str | None]) -> str:
    """The dtype in which a product is summed over devices: float32 where the contracted axes, `cuts`, are sharded."""
    assert compute.layout is not None
    return "float32" if any(compute.layout.size(cut) > 1 for cut in cuts) else compute.dtype


def _project(compute: Compute, name: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    summed = _summed_in(compute, kernel_cuts(name, kernel.ndim)[1][:1])
    columns = _gathered(compute, name, kernel)
    out = jnp.tensordot(x, columns, axes=1, precision=compute.precision, preferred_element_type=summed)
    return out.astype(compute.dtype)


def _sharded_dense_forward(
    compute: Compute, name: str, x: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, _Residuals]:
    return sharded_dense(compute, name, x, kernel, bias), (x, kernel, bias)


def _sharded_dense_backward(
    compute: Compute, name: str, residuals: _Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    x, kernel, bias = residuals
    assert compute.layout is not None  # callers run on several devices
    columns = _gathered(compute, name, kernel)
    channels = (tuple(range(x.ndim - 1, gradient.ndim)), tuple(range(1, kernel.ndim)))
    summed = _summed_in(compute, kernel_cuts(name, kernel.ndim)[1][1:])
    x_gradient = jnp.tensordot(
        gradient, columns, axes=channels, precision=compute.precision, preferred_element_type=summed
    ).astype(x.dtype)
    rows = tuple(range(x.ndim - 1))
    kernel_gradient = _summed_gradient(compute, x, gradient, kernel_cuts(name, kernel.ndim)[0])
    bias_gradient = None if bias is None else jnp.sum(gradient.astype(jnp.float32), axis=rows).astype(bias.dtype)
    # Stored kernels are float32; those that are ready for inference have the dtype of the product.
    return x_gradient, kernel_gradient.astype(kernel.dtype), bias_gradient


def _summed_gradient(compute: Compute, x: jax.Array, gradient: jax.Array, cuts: Spec) -> jax.Array:
    """The float32 gradient of a kernel, sharded by `cuts`: the sum over all rows of the batch and tokens.

    Rows of several slices are summed inside each slice first, so that the network between them carries a shard of the
    sum instead of all of it. The compiler for TPUs does so by itself, and worse where it is told.
    """
    layout = compute.layout
    assert layout is not None  # callers run on several devices
    slices = layout.size("slices")
    if slices == 1 or layout.platform == "tpu" or x.shape[0] % slices:
        rows = tuple(range(x.ndim - 1))
        total = jnp.tensordot(
            x, gradient, axes=(rows, rows), precision=compute.precision, preferred_element_type=jnp.float32
        )
        return layout.constrain(total, cuts)
    x, gradient = (array.reshape(slices, -1, *array.shape[1:]) for array in (x, gradient))
    rows = tuple(range(1, x.ndim - 1))
    sums = jax.lax.dot_general(
        x,
        gradient,
        ((rows, rows), ((0,), (0,))),
        precision=compute.precision,
        preferred_element_type=jnp.float32,
    )
    return layout.constrain(jnp.sum(layout.constrain(sums, ("slices", *cuts)), axis=0), cuts)


sharded_dense.defvjp(_sharded_dense_forward, _sharded_dense_backward)


def layer_norm(
    x: Float[Array, "*B D"], gain: Float[Array, "*rows D"], bias: Float[Array, "*rows D"]
) -> Float[Array, "*B D"]:
    """Layer norm, eps 1e-5, in float32, times a gain, plus a bias; both are broadcast to x.

    The variance of float32 is the mean of squared differences from the mean. That of bfloat16 is E[x^2] - E[x]^2, which
    reads x once instead of twice; its error is smaller than that of the rounded x, since float32 has 16 more bits.
    """
    h = x.astype(jnp.float32)
    mean = jnp.mean(h, axis=-1, keepdims=True)
    if x.dtype == jnp.bfloat16:
        variance = jnp.maximum(jnp.mean(h * h, axis=-1, keepdims=True) - mean * mean, 0)
        h = h - mean
    else:
        h = h - mean
        variance = jnp.mean(h * h, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(variance + 1e-5)
    return (h * gain + bias).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with a learned gain and bias."""

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return layer_norm(x, self.weight[...], self.bias[...])


class RMSNorm(nnx.Module):
    """RMS norm, eps 1e-6, in float32, with gain 1 + weight."""

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)
        return (h * (1.0 + self.weight[...])).astype(x.dtype)
