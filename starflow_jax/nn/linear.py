"""Dense layers and norms."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class Compute:
    """How products are computed: the type of their operands, and the precision of float32 ones on accelerators."""

    dtype: str = "float32"
    precision: str = "highest"


class Linear(nnx.Module):
    """x @ kernel + bias.

    The kernel is [inputs, outputs] in float32; the product runs in `compute.dtype`. The weights start normal with the
    given standard deviation (default inputs^-1/2), the bias at zero.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        key: jax.Array,
        *,
        bias: bool = True,
        std: float | None = None,
        compute: Compute = Compute(),
    ):
        std = inputs**-0.5 if std is None else std
        self.kernel = nnx.Param(std * jax.random.normal(key, (inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None
        self.compute = compute

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., inputs] to [..., outputs] in `compute.dtype`."""
        kernel = self.kernel[...]
        # Two-dimensional operands: XLA's CPU backend runs a 3-D weight gradient at a third of the speed.
        dtype = self.compute.dtype
        flat = x.astype(dtype).reshape(-1, kernel.shape[0])
        out = jnp.dot(flat, kernel.astype(dtype), precision=self.compute.precision)
        if self.bias is not None:
            out = out + self.bias[...].astype(dtype)
        return out.reshape(*x.shape[:-1], kernel.shape[1])


class LayerNorm(nnx.Module):
    """Layer norm, eps 1e-5, in float32."""

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-5)
        return (h * self.weight[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS norm, eps 1e-6, in float32, with gain 1 + weight."""

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)
        return (h * (1.0 + self.weight[...])).astype(x.dtype)


def make_norm(kind: str, width: int) -> LayerNorm | RMSNorm:
    """The norm named by `TransformerConfig.norm`."""
    return LayerNorm(width) if kind == "layer" else RMSNorm(width)
