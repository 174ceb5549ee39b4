"""Applies an autoencoder to large frames tile by tile, with blended overlaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.models.autoencoders.protocol import AnyArray, Autoencoder, Params


@dataclasses.dataclass(frozen=True)
class Tiled:
    """An autoencoder that processes one tile at a time, so that its memory does not grow with the frame.

    All tiles have one shape and run in one scan; the last tile of a row or column is shifted inwards. Overlapping
    results are averaged with weights that fall linearly towards the border of a tile. Norms and attention do not cross
    tiles, so that the result approximates that of the whole frame.

    Attributes:
      autoencoder: applied to each tile.
      tile, overlap: side of a tile, and minimum overlap of neighbours, in latent positions.
    """

    autoencoder: Autoencoder
    tile: int
    overlap: int

    def __post_init__(self):
        check_integer("tile", self.tile, minimum=2)
        check_integer("overlap", self.overlap, minimum=0)
        check(2 * self.overlap <= self.tile, f"overlap must be at most half of tile={self.tile}, got {self.overlap}")

    @property
    def stride(self) -> int:
        """See `Autoencoder.stride`."""
        return self.autoencoder.stride

    @property
    def frame_stride(self) -> int:
        """See `Autoencoder.frame_stride`."""
        return self.autoencoder.frame_stride

    @property
    def channels(self) -> int:
        """See `Autoencoder.channels`."""
        return self.autoencoder.channels

    @property
    def pixel_channels(self) -> int:
        """See `Autoencoder.pixel_channels`."""
        return self.autoencoder.pixel_channels

    def encode(self, params: Params, pixels: Float[AnyArray, "*B H W C"]) -> Float[Array, "*b rows columns c"]:
        """See `Autoencoder.encode`."""
        return self._by_tiles(lambda x: self.autoencoder.encode(params, x), jnp.asarray(pixels), self.stride, 1)

    def decode(self, params: Params, latents: Float[AnyArray, "*B rows columns c"]) -> Float[Array, "*b H W C"]:
        """See `Autoencoder.decode`."""
        return self._by_tiles(lambda x: self.autoencoder.decode(params, x), jnp.asarray(latents), 1, self.stride)

    def _by_tiles(self, function: Callable[[jax.Array], jax.Array], x: jax.Array, into: int, out: int) -> jax.Array:
        """`function` of all tiles; a latent position is `into` positions of x and `out` positions of the result."""
        rows, columns = x.shape[-3] // into, x.shape[-2] // into
        height, width = min(self.tile, rows), min(self.tile, columns)
        if (height, width) == (rows, columns):
            return function(x)
        row_starts, column_starts = tile_starts(rows, height, self.overlap), tile_starts(columns, width, self.overlap)
        corners = np.stack(np.meshgrid(row_starts, column_starts, indexing="ij"), axis=-1).reshape(-1, 2)
        weight = jnp.asarray(
            _ramp(height * out, self.overlap * out)[:, None, None] * _ramp(width * out, self.overlap * out)[:, None]
        )
        front = x.shape[:-3]
        zero = jnp.zeros((), jnp.int32)
        zeros = [zero] * len(front)

        def cut(corner: jax.Array) -> jax.Array:
            start = [*zeros[: len(front)], corner[0] * into, corner[1] * into, zero]
            return jax.lax.dynamic_slice(x, start, (*front, height * into, width * into, x.shape[-1]))

        result = jax.eval_shape(
            function, jax.ShapeDtypeStruct((*front, height * into, width * into, x.shape[-1]), x.dtype)
        )
        before = result.shape[:-3]  # the number of frames may differ
        output = jnp.zeros((*before, rows * out, columns * out, result.shape[-1]), jnp.float32)
        weights = jnp.zeros((rows * out, columns * out, 1), jnp.float32)

        def add(total: tuple[jax.Array, jax.Array], corner: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            output, weights = total
            row, column = corner[0] * out, corner[1] * out
            start = [*zeros[: len(before)], row, column, zero]
            current = jax.lax.dynamic_slice(output, start, result.shape)
            output = jax.lax.dynamic_update_slice(output, current + weight * function(cut(corner)), start)
            covered = jax.lax.dynamic_slice(weights, (row, column, zero), weight.shape)
            return (output, jax.lax.dynamic_update_slice(weights, covered + weight, (row, column, zero))), None

        (output, weights), _ = jax.lax.scan(add, (output, weights), jnp.asarray(corners, jnp.int32))
        return output / weights


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Starts of tiles that cover `size` positions with an overlap of at least `overlap`."""
    step = max(tile - overlap, 1)
    return [*range(0, size - tile, step), size - tile]


def _ramp(size: int, overlap: int) -> np.ndarray:
    """Positive weights [size] that increase over `overlap` positions from either end."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1.0
    return np.minimum(distance / (overlap + 1.0), 1.0).astype(np.float32)
