"""Dense layers whose kernel is stored in 8 or 4 bits."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from starflow_jax.core.config.flow_checks import check_devices
from starflow_jax.kernels.kernel_choice import device_target
from starflow_jax.nn.linear import Compute, Linear
from starflow_jax.nn.stored_kernels import require_qwix, stored_shapes, values
from starflow_jax.sharding.layout import Layout, kernel_cuts

# Most rows for which a CPU multiplies tile by tile, and the inputs in a tile.
FEW_ROWS, TILE = 8, 64


def dense(
    inputs: int, outputs: int | tuple[int, ...], key: PRNGKeyArray, *, compute: Compute, **options: Any
) -> Linear:
    """A dense layer that stores its kernel as `compute.quantise` says; arguments as those of `Linear`."""
    layer = Linear if compute.quantise is None else QuantisedLinear
    return layer(inputs, outputs, key, compute=compute, **options)


class QuantisedLinear(Linear):
    """x @ (scale * kernel) + bias, where the kernel is stored as `compute.quantise` says (`nn.stored_kernels`).

    The bias is float32. A new layer has a kernel of zeros: its numbers are those of a trained `Linear`
    (`training.checkpoints.quantised_streams`). Whole sequences and single tokens read the same numbers, so the map and
    its inverse are those of one network.

    With "int8-activations" the inputs are rounded to 8 bits too, with a scale of their own for every row: no token has
    an influence on how another one is rounded, and the network stays causal. Derivatives are those without rounding.
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
        compute: Compute = Compute(),  # noqa: B008 (frozen)
    ):
        assert compute.quantise is not None  # else `dense` makes a Linear
        check_devices(compute.quantise, 1 if compute.layout is None else compute.layout.mesh.size)
        shape = (outputs,) if isinstance(outputs, int) else outputs
        stored, dtype, groups = stored_shapes(compute.quantise, inputs, shape)
        self.kernel = nnx.Param(jnp.zeros(stored, dtype))
        self.scale = nnx.Param(jnp.ones((groups, *shape)))
        self.bias = nnx.Param(jnp.zeros(shape)) if bias else None
        self.name = name
        self.compute = compute

    def values(self) -> Float[Array, "inputs *outputs"]:
        """The kernel in float32."""
        assert self.compute.quantise is not None
        kernel: jax.Array = values(self.kernel[...], self.scale[...], self.compute.quantise)
        return kernel

    def ready(self) -> Linear:
        """The layer itself: products read the kernel as it is stored."""
        return self

    def _dense(self, x: Shaped[Array, "*B inputs"], bias: Float[Array, "*outputs"] | None) -> Float[Array, "..."]:
        dtype, layout, outputs = self.compute.dtype, self.compute.layout, self.scale.shape[1:]
        x = x.astype(dtype)
        if layout is not None and layout.mesh.size > 1:
            out = self._divided_product(x, layout)
        else:
            out = self._product(x.reshape(-1, x.shape[-1]), math.prod(outputs)).reshape(*x.shape[:-1], *outputs)
        if bias is not None:
            out = out + bias
        return out.astype(dtype)

    def _divided_product(self, x: Float[Array, "*B inputs"], layout: Layout) -> Float[Array, "..."]:
        """The product over a mesh, in float32, which gathers a kernel over fsdp in the bytes that it is stored in.

        The gradient by the inputs is that of the operations: kernels have none, since they are not trained.
        """
        numbers, scale = self.kernel[...], self.scale[...]
        stored, cuts = kernel_cuts(self.name, numbers.ndim)
        # Moved as integers: some backends widen 8-bit floats to move them. Both shardings of the integers are given, or
        # the partitioner would move the floats.
        moved = layout.constrain(jax.lax.bitcast_convert_type(numbers, jnp.uint8), stored)
        kernel = jax.lax.bitcast_convert_type(layout.constrain(moved, cuts), numbers.dtype)
        if self.compute.quantise == "int4":  # whose scales differ along the sum
            kernel, scale = layout.constrain(values(kernel, scale, "int4"), cuts), jnp.ones((1,))
        out: jax.Array = jnp.tensordot(
            x,
            kernel.astype(x.dtype),
            axes=1,
            precision=self.compute.precision,
            preferred_element_type=jnp.float32,
        )
        return out * scale[0]

    def _product(self, x: Float[Array, "rows inputs"], columns: int) -> Float[Array, "rows columns"]:
        scheme, precision = self.compute.quantise, self.compute.precision
        if scheme == "int4":
            kernel = self.values().astype(x.dtype).reshape(-1, columns)
            return jnp.dot(x, kernel, precision=precision, preferred_element_type=jnp.float32)
        kernel, scale = self.kernel[...].reshape(-1, columns), self.scale[...].reshape(1, columns)
        if scheme == "int8-activations":
            return _rounded_product(x, kernel, scale)
        layout = self.compute.layout  # of one device, which may be one that is not attached
        platform = device_target().platform if layout is None else layout.platform
        if x.shape[0] <= FEW_ROWS and x.shape[1] >= TILE and platform == "cpu":
            return _tiled_product(x, kernel) * scale
        kernel = kernel.astype(x.dtype)
        return jnp.dot(x, kernel, precision=precision, preferred_element_type=jnp.float32) * scale


def _tiled_product(
    x: Float[Array, "rows inputs"], kernel: Shaped[Array, "inputs columns"]
) -> Float[Array, "rows columns"]:
    """x @ kernel in float32, which converts a few rows of the kernel at a time.

    XLA's CPU backend writes a converted operand of a product to memory as a whole; a tile of it stays in the cache, so
    that only the stored bytes are read from memory.
    """
    inputs = kernel.shape[0]
    whole = inputs - inputs % TILE

    def add_tile(index: jax.Array, total: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(x, index * TILE, TILE, axis=1).astype(jnp.float32)
        rows = jax.lax.dynamic_slice_in_dim(kernel, index * TILE, TILE).astype(jnp.float32)
        return total + jnp.dot(part, rows, precision="highest")

    total = jnp.dot(x[:, whole:].astype(jnp.float32), kernel[whole:].astype(jnp.float32), precision="highest")
    result: jax.Array = jax.lax.fori_loop(0, whole // TILE, add_tile, total)
    return result


@jax.custom_jvp
def _rounded_product(
    x: Float[Array, "rows inputs"], kernel: Shaped[Array, "inputs columns"], scale: Float[Array, "1 columns"]
) -> Float[Array, "rows columns"]:
    """The product of rows that are rounded to 8 bits with int8 weights, summed in int32."""
    qwix = require_qwix()
    rows = qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=(0,))
    product: jax.Array = qwix.dot_general(rows, qwix.QArray(kernel, scale), (((1,), (0,)), ((), ())))
    return product


@_rounded_product.defjvp
def _rounded_product_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    x, kernel, scale = primals
    return _rounded_product(x, kernel, scale), jnp.dot(
        tangents[0].astype(jnp.float32), kernel.astype(jnp.float32)
    ) * scale
