"""Large frames of a video tile by tile, also in chunks: each tile has a past of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.models.autoencoders.tiled import Tiled, tile_starts
from starflow_jax.models.autoencoders.wan.layers import Past
from starflow_jax.models.autoencoders.wan.model import WanAutoencoder

Step = Callable[[jax.Array, Past], tuple[jax.Array, Past]]


@dataclasses.dataclass(frozen=True)
class TiledWan(Tiled):
    """A Wan autoencoder that works on one tile of a frame at a time, also chunk by chunk; its memory is that of a tile.

    All tiles have one shape and go through one scan; the last of a row or column is moved in from the border. Where
    tiles overlap, their results are mixed by weights that fall towards the border of a tile. Convolutions and attention
    see a tile and not the frame, so the result is near that of the whole frame and not equal.

    Attributes:
      autoencoder: what is applied to a tile.
      tile, overlap: sides of a tile, and of what neighbours share at least, in latent positions.
    """

    autoencoder: WanAutoencoder

    def encode(self, params: Params, pixels: jax.Array) -> jax.Array:
        """As `WanAutoencoder.encode`."""
        clips = pixels[:, None] if pixels.ndim == 4 else pixels
        latents = self.encode_chunk(params, clips)[0]
        return latents[:, 0] if pixels.ndim == 4 else latents

    def decode(self, params: Params, latents: jax.Array) -> jax.Array:
        """As `WanAutoencoder.decode`."""
        clips = latents[:, None] if latents.ndim == 4 else latents
        pixels = self.decode_chunk(params, clips)[0]
        return pixels[:, 0] if latents.ndim == 4 else pixels

    def encode_chunk(self, params: Params, pixels: jax.Array, past: Past = None) -> tuple[jax.Array, Past]:
        """As `WanAutoencoder.encode_chunk`; the past has a leading axis of tiles."""
        side = self.stride
        check(
            pixels.ndim == 5 and pixels.shape[2] % side == 0 and pixels.shape[3] % side == 0,
            f"pixels must be [B, T, H, W, C] with sides that are multiples of {side}, got shape {list(pixels.shape)}",
        )
        return self._chunk_by_tiles(lambda x, p: self.autoencoder.encode_chunk(params, x, p), pixels, past, side, 1)

    def decode_chunk(self, params: Params, latents: jax.Array, past: Past = None) -> tuple[jax.Array, Past]:
        """As `WanAutoencoder.decode_chunk`; the past has a leading axis of tiles."""
        check(latents.ndim == 5, f"latents must be [B, t, h, w, c], got shape {list(latents.shape)}")
        return self._chunk_by_tiles(
            lambda x, p: self.autoencoder.decode_chunk(params, x, p), latents, past, 1, self.stride
        )

    def _chunk_by_tiles(self, step: Step, x: jax.Array, past: Past, into: int, out: int) -> tuple[jax.Array, Past]:
        """`step` of every tile; a latent position is `into` places of x, and `out` places of the result."""
        batch, frames, *sides, channels = x.shape
        rows, columns = (side // into for side in sides)
        height, width = min(self.tile, rows), min(self.tile, columns)
        down, across = (_Cuts.of(size, tile, self.overlap, out) for size, tile in ((rows, height), (columns, width)))
        places = [(i, j) for i in range(len(down.starts)) for j in range(len(across.starts))]
        tiles = {
            "corner": jnp.asarray([(down.starts[i], across.starts[j]) for i, j in places], jnp.int32),
            "rows": jnp.asarray(np.stack([down.weights[i] for i, _ in places])),
            "columns": jnp.asarray(np.stack([across.weights[j] for _, j in places])),
            "past": past,
        }
        of_tile = (batch, frames, height * into, width * into, channels)
        first_past = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape[1:], value.dtype), past)
        result, _ = jax.eval_shape(step, jax.ShapeDtypeStruct(of_tile, x.dtype), first_past)
        whole = jnp.zeros((batch, result.shape[1], rows * out, columns * out, result.shape[-1]), jnp.float32)

        def add(whole: jax.Array, tile: dict) -> tuple[jax.Array, Past]:
            row, column = tile["corner"]
            seen = jax.lax.dynamic_slice(x, (0, 0, row * into, column * into, 0), of_tile)
            made, after = step(seen, tile["past"])
            weighted = made * tile["rows"][:, None, None] * tile["columns"][:, None]
            start = (0, 0, row * out, column * out, 0)
            there = jax.lax.dynamic_slice(whole, start, weighted.shape)
            return jax.lax.dynamic_update_slice(whole, there + weighted, start), after

        return jax.lax.scan(add, whole, tiles)


@dataclasses.dataclass(frozen=True)
class _Cuts:
    """An axis in equal pieces.

    Attributes:
      starts: where they begin, in latent positions.
      weights: of every piece float32 [places of the result]; at every place of the axis they add up to 1.
    """

    starts: list[int]
    weights: np.ndarray

    @classmethod
    def of(cls, size: int, tile: int, overlap: int, out: int) -> _Cuts:
        """`size` latent positions in pieces of `tile`, which share at least `overlap`; each makes `out` places."""
        starts = tile_starts(size, tile, overlap)
        distance = np.minimum(np.arange(tile * out), np.arange(tile * out)[::-1]) + 0.5
        ramp = np.minimum(distance / max(overlap * out, 1), 1.0)
        total = np.zeros(size * out)
        for start in starts:
            total[start * out : (start + tile) * out] += ramp
        weights = [ramp / total[start * out : (start + tile) * out] for start in starts]
        return cls(starts, np.stack(weights).astype(np.float32))
