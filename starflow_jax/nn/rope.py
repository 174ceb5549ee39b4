"""Rotary position embedding (specification, section 1, "RoPE").

Positions are static for a geometry and are computed in numpy; the rotation itself is traced.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_THETA = 10000.0
_THIRD_AXIS_ANGLES = 8


@flax.struct.dataclass
class Rotation:
    """cos, sin: [slots, d / 2] float32; adjacent: whether pairs are neighbouring channels, else the two halves."""

    cos: jax.Array
    sin: jax.Array
    adjacent: bool = flax.struct.field(pytree_node=False)

    def at(self, slot: int | Int[Array, ""], count: int) -> Rotation:
        """The rows of `count` slots from `slot` on (clamped to the table, as slices of the cache are)."""
        cos, sin = (jax.lax.dynamic_slice_in_dim(a, slot, count) for a in (self.cos, self.sin))
        return Rotation(cos, sin, self.adjacent)

    def __call__(self, x: Float[Array, "B h n d"], *, exchange_by_product: bool = False) -> Float[Array, "B h n d"]:
        """Rotates x in float32.

        exchange_by_product: swap adjacent channels by a product with a permutation matrix, which is exact and fast on
        a TPU, where an array with a last axis of two is padded to a full register.
        """
        h = x.astype(jnp.float32)
        if self.adjacent and exchange_by_product:
            channels = np.arange(x.shape[-1])
            permutation = jnp.asarray(channels[:, None] == (channels ^ 1)[None], x.dtype)
            partner = jnp.matmul(x, permutation, precision=jax.lax.Precision.HIGHEST).astype(jnp.float32)
            sign = jnp.asarray(np.where(channels % 2 == 0, -1.0, 1.0), jnp.float32)
            cos, sin = (jnp.repeat(table, 2, axis=-1) for table in (self.cos, self.sin))
            return (h * cos + partner * (sign * sin)).astype(x.dtype)
        if self.adjacent:
            pairs = h.reshape(*h.shape[:-1], -1, 2)
            first, second = pairs[..., 0], pairs[..., 1]
        else:
            first, second = jnp.split(h, 2, axis=-1)
        rotated = first * self.cos - second * self.sin, second * self.cos + first * self.sin
        join = jnp.stack if self.adjacent else jnp.concatenate
        return join(rotated, axis=-1).reshape(h.shape).astype(x.dtype)


def axial_positions(
    rows: int, columns: int, *, span: float, axes: int = 3, text: int = 0, frames: int = 1
) -> Float[np.ndarray, "S axes"]:
    """Positions [text + frames * rows * columns, axes], float64, in raster order with the text first.

    Rows and columns are scaled so that an image of any aspect ratio covers about `span` x `span`; the third axis
    is the frame index, and for text token t of L the value t / L * span.
    """
    scale = span / math.sqrt(rows * columns)
    frame, row, column = np.meshgrid(np.arange(frames), np.arange(rows), np.arange(columns), indexing="ij")
    raster = np.stack([row * scale, column * scale, frame], axis=-1).reshape(-1, 3).astype(np.float64)
    if axes == 2:
        return raster[:, :2]
    prefix = np.zeros((text, 3))
    prefix[:, 2] = np.arange(text) / max(text, 1) * span
    return np.concatenate([prefix, raster])


def line_positions(count: int) -> Float[np.ndarray, "S 1"]:
    """Positions [count, 1] of plain one-dimensional RoPE."""
    return np.arange(count, dtype=np.float64)[:, None]


def axis_frequencies(axes: int, head_dim: int) -> list[Float[np.ndarray, "angles"]]:
    """The frequencies of each axis, head_dim / 2 in all."""
    half = head_dim // 2

    def geometric(count: int) -> Float[np.ndarray, "angles"]:
        return _THETA ** (-np.arange(count) / count)

    if axes == 1:
        return [geometric(half)]
    if axes == 2:
        return [geometric(half // 2)] * 2
    spatial = (half - _THIRD_AXIS_ANGLES) // 2
    return [geometric(spatial), geometric(spatial), geometric(_THIRD_AXIS_ANGLES)]


def angles(positions: Float[np.ndarray, "S axes"], head_dim: int) -> Float[Array, "S half"]:
    """Angles [slots, head_dim / 2], float32: the axes' angles side by side."""
    frequencies = axis_frequencies(positions.shape[1], head_dim)
    columns = [
        jnp.asarray(positions[:, axis, None], jnp.float32) * jnp.asarray(f, jnp.float32)
        for axis, f in enumerate(frequencies)
    ]
    return jnp.concatenate(columns, axis=1)


def rotation(positions: Float[np.ndarray, "S axes"], head_dim: int, pairs: str, *, padding: int = 0) -> Rotation:
    """The rotation table of the given positions, followed by `padding` rows of the identity."""
    table = jnp.pad(angles(positions, head_dim), ((0, padding), (0, 0)))
    return Rotation(jnp.cos(table), jnp.sin(table), pairs == "adjacent")
