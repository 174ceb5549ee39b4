"""Applies a Wan autoencoder to large frames tile by tile, also in chunks: each tile has its own cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from starflow_jax.core.config.checks import check
from starflow_jax.models.autoencoders.protocol import AnyArray, Params
from starflow_jax.models.autoencoders.tiled import Tiled, tile_starts
from starflow_jax.models.autoencoders.wan.layers import Past
from starflow_jax.models.autoencoders.wan.model import WanAutoencoder

Step = Callable[[jax.Array, Past], tuple[jax.Array, Past]]


@dataclasses.dataclass(frozen=True)
class TiledWan(Tiled):
    """A Wan autoencoder that processes one tile of a frame at a time, also chunk by chunk, in the memory of a tile.

    All tiles have one shape and run in one scan; the last tile of a row or column is shifted inwards. Overlapping
    results are averaged with weights that fall towards the border of a tile. Convolutions and attention are restricted
    to a tile, so that the result approximates that of the whole frame.

    Attributes:
      autoencoder: applied to each tile.
      tile, overlap: side of a tile, and minimum overlap of neighbours, in latent positions.
    """

    autoencoder: WanAutoencoder

    def encode(self, params: Params, pixels: Float[AnyArray, "*B H W C"]) -> Float[Array, "*b rows columns c"]:
        """See `WanAutoencoder.encode`."""
        clips = pixels[:, None] if pixels.ndim == 4 else pixels
        latents = self.encode_chunk(params, clips)[0]
        return latents[:, 0] if pixels.ndim == 4 else latents

    def decode(self, params: Params, latents: Float[AnyArray, "*B rows columns c"]) -> Float[Array, "*b H W C"]:
        """See `WanAutoencoder.decode`."""
        clips = latents[:, None] if latents.ndim == 4 else latents
        pixels = self.decode_chunk(params, clips)[0]
        return pixels[:, 0] if latents.ndim == 4 else pixels

    def encode_chunk(
        self, params: Params, pixels: Float[AnyArray, "B T H W C"], past: Past = None
    ) -> tuple[Float[Array, "B t rows columns c"], Past]:
        """See `WanAutoencoder.encode_chunk`; the cache has a leading axis of tiles."""
        side = self.stride
        check(
            pixels.ndim == 5 and pixels.shape[2] % side == 0 and pixels.shape[3] % side == 0,
            f"pixels must be [B, T, H, W, C] with sides that are multiples of {side}, got shape {list(pixels.shape)}",
        )
        return self._chunk_by_tiles(
            lambda x, p: self.autoencoder.encode_chunk(params, x, p), jnp.asarray(pixels), past, side, 1
        )

    def decode_chunk(
        self, params: Params, latents: Float[AnyArray, "B t rows columns c"], past: Past = None
    ) -> tuple[Float[Array, "B T H W C"], Past]:
        """See `WanAutoencoder.decode_chunk`; the cache has a leading axis of tiles."""
        check(latents.ndim == 5, f"latents must be [B, t, h, w, c], got shape {list(latents.shape)}")
        return self._chunk_by_tiles(
            lambda x, p: self.autoencoder.decode_chunk(params, x, p), jnp.asarray(latents), past, 1, self.stride
        )

    def _chunk_by_tiles(self, step: Step, x: jax.Array, past: Past, into: int, out: int) -> tuple[jax.Array, Past]:
        """`step` of every tile; a latent position is `into` positions of x and `out` positions of the result."""
        batch, frames, *sides, channels = x.shape
        rows, columns = (side // into for side in sides)
        height, width = min(self.tile, rows), min(self.tile, columns)
        down, across = (
            _Tiles1D.from_size(size, tile, self.overlap, out) for size, tile in ((rows, height), (columns, width))
        )
        indices = [(i, j) for i in range(len(down.starts)) for j in range(len(across.starts))]
        tiles = {
            "corner": jnp.asarray([(down.starts[i], across.starts[j]) for i, j in indices], jnp.int32),
            "rows": jnp.asarray(np.stack([down.weights[i] for i, _ in indices])),
            "columns": jnp.asarray(np.stack([across.weights[j] for _, j in indices])),
            "past": past,
        }
        tile_shape = (batch, frames, height * into, width * into, channels)
        first_past = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape[1:], value.dtype), past)
        result, _ = jax.eval_shape(step, jax.ShapeDtypeStruct(tile_shape, x.dtype), first_past)
        full = jnp.zeros((batch, result.shape[1], rows * out, columns * out, result.shape[-1]), jnp.float32)

        def add(full: jax.Array, tile: dict) -> tuple[jax.Array, Past]:
            row, column = tile["corner"]
            tile_input = jax.lax.dynamic_slice(x, (0, 0, row * into, column * into, 0), tile_shape)
            output, new_past = step(tile_input, tile["past"])
            weighted = output * tile["rows"][:, None, None] * tile["columns"][:, None]
            start = (0, 0, row * out, column * out, 0)
            current = jax.lax.dynamic_slice(full, start, weighted.shape)
            return jax.lax.dynamic_update_slice(full, current + weighted, start), new_past

        return jax.lax.scan(add, full, tiles)


@dataclasses.dataclass(frozen=True)
class _Tiles1D:
    """Overlapping tiles along one axis.

    Attributes:
      starts: their starts in latent positions.
      weights: float32 [tiles, positions of the result]; they sum to 1 at every position of the axis.
    """

    starts: list[int]
    weights: np.ndarray

    @classmethod
    def from_size(cls, size: int, tile: int, overlap: int, out: int) -> _Tiles1D:
        """Tiles of an axis of `size` latent positions, each of which is `out` positions of the result."""
        starts = tile_starts(size, tile, overlap)
        distance = np.minimum(np.arange(tile * out), np.arange(tile * out)[::-1]) + 0.5
        ramp = np.minimum(distance / max(overlap * out, 1), 1.0)
        total = np.zeros(size * out)
        for start in starts:
            total[start * out : (start + tile) * out] += ramp
        weights = [ramp / total[start * out : (start + tile) * out] for start in starts]
        return cls(starts, np.stack(weights).astype(np.float32))
