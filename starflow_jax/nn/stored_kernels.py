"""Kernels of dense layers in 8 or 4 bits: their shapes, how they are made from float32 ones, and their values.

A kernel w [inputs, *outputs] is stored as integers or 8-bit floats q and float32 scales s, so that w is about s q:

    int8   -128 to 127, one scale for each output channel
    fp8    e4m3 of arXiv 2209.05433, one scale for each output channel
    int4   -8 to 7, one scale for each output channel and group of 8 to 32 inputs, two neighbouring inputs in a byte

Qwix makes the numbers; nothing else here needs it. The scale is the largest magnitude of its channel or group over
127.5, over 448, the largest number of e4m3, or over 7.5. That of integers is half a step beyond the largest one, so
that a weight of the largest magnitude is off by half a step: a positive one becomes 127 or 7, and a negative one -127
or -128, -7 or -8, as its quotient is rounded in float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from starflow_jax.core.choices import Quantisation
from starflow_jax.core.config.flow_checks import scale_group

NEEDED = "pip install 'starflow-jax[quantise]'"

_DTYPES: dict[Quantisation, Any] = {
    "int8": jnp.int8,
    "int8-activations": jnp.int8,
    "fp8": jnp.float8_e4m3fn,
    "int4": jnp.uint8,
}


def storage(scheme: Quantisation) -> Quantisation:
    """The scheme that stores the same numbers: activations are not stored."""
    return "int8" if scheme == "int8-activations" else scheme


def scheme_of_dtype(dtype: np.dtype) -> Quantisation | None:
    """The scheme that stores numbers of this dtype; None for another dtype."""
    return next((scheme for scheme, stored in _DTYPES.items() if np.dtype(stored) == dtype), None)


def bytes_each(scheme: Quantisation) -> float:
    """Bytes of a stored number of a kernel."""
    return 0.5 if scheme == "int4" else 1.0


def stored_shapes(scheme: Quantisation, inputs: int, outputs: tuple[int, ...]) -> tuple[tuple[int, ...], Any, int]:
    """Shape and dtype of the stored numbers of a kernel [inputs, *outputs], and the number of scales of an output."""
    if scheme != "int4":
        return (inputs, *outputs), _DTYPES[scheme], 1
    return (inputs // 2, *outputs), _DTYPES[scheme], inputs // scale_group(inputs)


def quantised_kernel(
    kernel: Float[Array, "inputs *outputs"] | Float[np.ndarray, "inputs *outputs"], scheme: Quantisation
) -> tuple[Shaped[np.ndarray, "stored *outputs"], Float[np.ndarray, "groups *outputs"]]:
    """The stored numbers and the scales of a float32 kernel, on the host.

    Raises:
      ValueError: Qwix is not installed.
    """
    qwix = require_qwix()
    inputs, *outputs = kernel.shape
    _, dtype, groups = stored_shapes(scheme, inputs, tuple(outputs))
    array = qwix.quantize(
        jnp.asarray(kernel, jnp.float32),
        jnp.int4 if scheme == "int4" else dtype,
        channelwise_axes=tuple(range(1, kernel.ndim)),
        tiled_axes={0: inputs // groups} if groups > 1 else None,
    )
    numbers, scale = np.asarray(array.qvalue), np.asarray(array.scale)
    return (_packed(numbers.astype(np.int8)) if scheme == "int4" else numbers), scale


def require_qwix() -> Any:
    """The package qwix; ValueError where it is not installed."""
    try:
        import qwix
    except ImportError as error:
        raise ValueError(f"quantisation needs the package qwix: {NEEDED}") from error
    return qwix


def values(
    numbers: Shaped[Array, "stored *outputs"], scale: Float[Array, "groups *outputs"], scheme: Quantisation
) -> Float[Array, "inputs *outputs"]:
    """The float32 kernel that stored numbers and scales stand for."""
    if scheme == "int4":
        numbers = _unpacked(numbers)
    # Scales are repeated, and the kernel is not split into groups, which a device may hold parts of.
    return numbers.astype(jnp.float32) * jnp.repeat(scale, numbers.shape[0] // scale.shape[0], axis=0)


def _packed(numbers: np.ndarray) -> np.ndarray:
    """int8 [inputs, ...] of -8 to 7 as uint8 [inputs / 2, ...]: even rows in the low bits, odd ones in the high.

    Neighbours and not halves, so that a part of the bytes is a part of the kernel: where a mesh divides the inputs,
    each device reads its rows from the bytes that it has.
    """
    low, high = numbers.view(np.uint8)[::2], numbers.view(np.uint8)[1::2]
    return (low & 15) | (high << 4)


def _unpacked(packed: jax.Array) -> jax.Array:
    """The inverse of `_packed`."""
    pairs = jax.lax.bitcast_convert_type(packed, jnp.int8)[:, None]
    shifts = jnp.asarray([4, 0], jnp.int8).reshape(2, *[1] * (packed.ndim - 1))
    return ((pairs << shifts) >> 4).reshape(2 * packed.shape[0], *packed.shape[1:])
