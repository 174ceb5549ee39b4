"""Tokens of an image, a video or a vector, and the order in which a block reads them (specification, 1.1 and 1.2)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from starflow_jax.core.config.flow_config import FlowConfig

# NumPy arrays are accepted in place of JAX arrays; static types name the latter alone.
if TYPE_CHECKING:
    AnyArray = Array
else:
    AnyArray = Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Grid:
    """The token grid of one call: frames (None for a still image), rows, columns."""

    frames: int | None
    rows: int
    columns: int

    @classmethod
    def from_shape(cls, config: FlowConfig, shape: tuple[int, ...]) -> Grid:
        """The grid of data [B, H, W, C] or [B, T, H, W, C]; ValueError where it does not fit the configuration."""
        if len(shape) not in (4, 5) or shape[-1] != config.channels:
            raise ValueError(
                f"x must be [B, H, W, {config.channels}] or [B, T, H, W, {config.channels}], got shape {tuple(shape)}"
            )
        *_, height, width, _ = shape
        p = config.patch_size
        if height % p or width % p:
            raise ValueError(f"patch_size {p} must divide the rows and columns of x, got {height} x {width}")
        grid = cls(shape[1] if len(shape) == 5 else None, height // p, width // p)
        if not config.rope and (grid.frames is not None or (grid.rows, grid.columns) != config.grid):
            raise ValueError(
                f"a flow without rotary positions (rope=False) has a fixed size of x, {config.image_shape}, got shape "
                f"{tuple(shape)}"
            )
        given = "orders" if config.orders is not None else "token_classes" if config.token_classes else None
        if given is not None and (grid.frames is not None or (grid.rows, grid.columns) != config.grid):
            raise ValueError(
                f"{given} fix the size of x at {config.image_shape}, without frames, got shape {tuple(shape)}"
            )
        if grid.frames is not None and config.axes == 2:
            raise ValueError(f"a video needs rope_axes=3, got rope_axes=2 and x of shape {tuple(shape)}")
        return grid

    @property
    def frame(self) -> int:
        """F: tokens per frame."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """N: number of tokens."""
        return (self.frames or 1) * self.frame

    @property
    def shape(self) -> tuple[int, ...]:
        """([T,] h, w)."""
        still = (self.rows, self.columns)
        return still if self.frames is None else (self.frames, *still)

    def with_frames(self, frames: int | None) -> Grid:
        """The same rows and columns with another number of frames."""
        return dataclasses.replace(self, frames=frames)


def patchify(x: Float[AnyArray, "*B H W C"], patch_size: int, family: str) -> Float[AnyArray, "*B rows columns c"]:
    """[..., H, W, C] to tokens [..., h, w, C * p * p]; a token is ordered (p1, p2, C), in TARFlow (C, p1, p2)."""
    *lead, height, width, channels = x.shape
    p = patch_size
    x = x.reshape(*lead, height // p, p, width // p, p, channels)
    n = len(lead)
    inner = (n + 4, n + 1, n + 3) if family == "tarflow" else (n + 1, n + 3, n + 4)
    x = x.transpose(*range(n), n, n + 2, *inner)
    return x.reshape(*lead, height // p, width // p, channels * p * p)


def unpatchify(
    tokens: Float[AnyArray, "*B rows columns c"], patch_size: int, family: str
) -> Float[AnyArray, "*B H W C"]:
    """The inverse of `patchify`."""
    *lead, rows, columns, size = tokens.shape
    p = patch_size
    channels = size // (p * p)
    n = len(lead)
    if family == "tarflow":
        x = tokens.reshape(*lead, rows, columns, channels, p, p)
        x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)
    else:
        x = tokens.reshape(*lead, rows, columns, p, p, channels)
        x = x.transpose(*range(n), n, n + 2, n + 1, n + 3, n + 4)
    return x.reshape(*lead, rows * p, columns * p, channels)


# The name of an order, or the raster index of every token of the block.
Order = Literal["identity", "flip", "flip_in_frame"] | tuple[int, ...]


def block_order(config: FlowConfig, block: int, grid: Grid) -> Order:
    """The order in which a block reads the tokens of a grid."""
    if config.orders is not None and config.orders[block]:
        return config.orders[block]
    if not config.reads_backwards(block):
        return "identity"
    return "flip_in_frame" if config.temporal_causal and grid.frames is not None else "flip"


def is_frame_causal(config: FlowConfig) -> bool:
    """Whether no frame of a video depends on a later one in any block of a flow."""
    two_frames = Grid(2, *config.grid)
    return config.orders is None and not any(
        block.layers and not config.is_local(index) and block_order(config, index, two_frames) == "flip"
        for index, block in enumerate(config.blocks)
    )


def reorder(
    tokens: Shaped[AnyArray, "B N *c"],
    order: Order,
    frame: int,
    lengths: Int[AnyArray, "B"] | None = None,
    *,
    restore: bool = False,
) -> Shaped[AnyArray, "B N *c"]:
    """Permutes tokens from raster order to the order of a block.

    Args:
      tokens: [B, N, ...].
      order: of the block.
      frame: tokens per frame.
      lengths: number of tokens of every example, where those behind them in raster order are padding. Padding comes
        last in the block's order, too, so that the tokens before it do not depend on it.
      restore: whether to permute from the order of a block to raster order instead.
    """
    if lengths is not None:
        index = jnp.asarray(raster_indices(order, tokens.shape[1]))[None]
        # A stable sort: real tokens in the order of the block, then the padding.
        index = jnp.take_along_axis(index, jnp.argsort(index >= lengths[:, None], axis=1, stable=True), axis=1)
        index = jnp.argsort(index, axis=1) if restore else index
        return jnp.take_along_axis(tokens, index.reshape(*index.shape, *(1,) * (tokens.ndim - 2)), axis=1)
    if order == "identity":
        return tokens
    if order == "flip":
        return tokens[:, ::-1]
    if order != "flip_in_frame":
        raster = np.asarray(order)
        return tokens[:, np.argsort(raster) if restore else raster]
    batch, count = tokens.shape[:2]
    frames = tokens.reshape(batch, count // frame, frame, *tokens.shape[2:])
    return frames[:, :, ::-1].reshape(tokens.shape)


def raster_indices(order: Order, count: int) -> Int[np.ndarray, "N"]:
    """The raster index of every one of `count` tokens of a block that does not run inside frames."""
    if isinstance(order, tuple):
        return np.asarray(order)
    return np.arange(count) if order == "identity" else np.arange(count)[::-1]


def is_real(lengths: Int[AnyArray, "B"], count: int) -> Bool[Array, "B N"]:
    """Which of `count` tokens are no padding; the same in raster order and in that of any block."""
    return jnp.arange(count) < jnp.asarray(lengths)[:, None]
