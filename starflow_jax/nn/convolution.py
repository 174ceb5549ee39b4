"""Convolutional layers: Flax's, with norms in float32 and without first values.

Modules made of them only say what parameters there are; `nn.parameters.drawn` draws the values, in one place. Tracing
a draw in every layer takes seconds, and most networks of this kind are read from files.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

_EPSILON = 1e-6


def _blank(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    """In place of an array."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def conv(
    inputs: int,
    outputs: int,
    window: int | tuple[int, int],
    rngs: nnx.Rngs,
    dtype: str,
    *,
    stride: int = 1,
    padding: Sequence[tuple[int, int]] | None = None,
    bias: bool = True,
) -> nnx.Conv:
    """A convolution of [B, H, W, inputs] by a window, square or (rows, columns).

    Padding None puts half a window on every side.
    """
    sides = (window, window) if isinstance(window, int) else window
    around = [(side // 2, side // 2) for side in sides] if padding is None else list(padding)
    return nnx.Conv(
        inputs,
        outputs,
        sides,
        stride,
        padding=around,
        use_bias=bias,
        dtype=dtype,
        precision="highest",
        kernel_init=_blank,
        bias_init=_blank,
        rngs=rngs,
    )


def dense(inputs: int, outputs: int, rngs: nnx.Rngs, dtype: str) -> nnx.Linear:
    """A dense layer."""
    return nnx.Linear(
        inputs, outputs, dtype=dtype, precision="highest", kernel_init=_blank, bias_init=_blank, rngs=rngs
    )


class GroupNorm(nnx.GroupNorm):
    """Group norm in float32, whatever the dtype of its input, which it returns."""

    def __init__(self, channels: int, groups: int, rngs: nnx.Rngs):
        super().__init__(
            channels,
            groups,
            epsilon=_EPSILON,
            dtype=jnp.float32,
            use_fast_variance=False,
            scale_init=_blank,
            bias_init=_blank,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)
