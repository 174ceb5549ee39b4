"""Flax's convolutional layers without initial values, and norms in float32.

The parameters are ShapeDtypeStructs; `module_parameters.drawn` samples the values of a whole network at once. Tracing
an initializer per layer takes seconds, and most networks of this kind are read from files.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

_EPSILON = 1e-6


def _blank(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """An initializer that returns a ShapeDtypeStruct."""
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
    """A convolution of [B, H, W, inputs] with a window, square or (rows, columns).

    Padding None pads every side by half a window.
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
    """Group norm, computed in float32 and returned in the dtype of its input."""

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

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:  # type: ignore[override]
        normalised: jax.Array = super().__call__(x.astype(jnp.float32))
        return normalised.astype(x.dtype)
