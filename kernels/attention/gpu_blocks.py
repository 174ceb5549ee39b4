"""Code that the Hopper attention kernels share: block sizes, buffers, masks of tiles.

The kernels do not evaluate the visibility rule. They read two numbers for each row (start and end of the visible
interval), and five for each tile: the blocks to visit, and those that need no mask (`ranges`). The last tile and the
last block are moved back where they would extend beyond the end: rows are then computed twice, equal up to the order
of sums, and keys of the block before are masked.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from starflow_jax.kernels.attention.ranges import STEPS, WHOLE, WHOLE_END

# A maximum starts at LOWEST, below every logit; masked logits are so far below that their weight is 0.
LOWEST, MASKED = -1e30, -3e30
# The lse of a query without visible keys.
EMPTY_LSE = 1e30
LOG2E = math.log2(math.e)
# Warpgroups that multiply; one more copies.
WORKERS = 2
# Registers of a thread that multiplies, and of one that copies: together as many as the 168 that each starts with.
MULTIPLYING, COPYING = 240, 24
LINE = 8


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Block sizes of the kernels.

    Attributes:
      block_q: queries of one warpgroup. block_k: keys of one step. stages: buffers of keys and values.
      block_q_backward, block_k_backward, stages_backward: the same in the backward kernels.

    Raises:
      ValueError: sizes that are not multiples of 64, or zero stages.
    """

    block_q: int = 64
    block_k: int = 128
    stages: int = 2
    block_q_backward: int = 64
    block_k_backward: int = 64
    stages_backward: int = 2

    def __post_init__(self) -> None:
        sizes = (self.block_q, self.block_k, self.block_q_backward, self.block_k_backward)
        if any(size < 64 or size % 64 for size in sizes) or min(self.stages, self.stages_backward) < 1:
            raise ValueError(f"blocks must be multiples of 64 and stages >= 1, got {self}")


# By head dim; chosen to fit registers (two tiles of logits of 64 rows) and shared memory, not measured.
BLOCKS = {64: Blocks(stages=4, stages_backward=4), 128: Blocks()}


def padded_slots(slots: int, blocks: Blocks) -> int:
    """Slots of keys that the kernels can copy: whole lines of TMA's tiles, and a tile of every kernel at least."""
    return max(-(-slots // LINE) * LINE, blocks.block_k, blocks.block_k_backward * WORKERS)


def padded_rows(count: int, tile: int) -> int:
    """Rows of arrays with one number a row: at least a tile, and whole 16 bytes, which TMA copies need."""
    return max(-(-count // 8) * 8, tile)


def smem(shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> Any:
    """A shared-memory buffer of a matrix that wgmma reads: tiled and swizzled, 64 channels a tile."""
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))


def block_start(step: Any, start: Any, ahead: Any, block: int, slots: int) -> tuple[Any, Any]:
    """First slot of the block of a step, and its first valid slot, which is later where the block was moved back.

    Args:
      step: index of the step; the first `ahead` steps visit the blocks from 0 on, later ones those from `start` on.
      block, slots: size of a block, and of the axis.
    """
    lowest = jnp.where(step < ahead, step, start + step - ahead) * block
    return jnp.minimum(lowest, slots - block), lowest


def tile_mask(base: Any, lowest: Any, prefix: Any, start: Any, end: Any, shape: tuple[int, int], rows: int) -> Any:
    """The mask of a tile of logits in wgmma's layout; `rows` is the axis of the queries."""
    key = base + plgpu.broadcasted_iota(jnp.int32, shape, 1 - rows, layout=plgpu.Layout.WGMMA)
    start, end = (jax.lax.broadcast_in_dim(bound, shape, [rows]) for bound in (start, end))
    return (((key >= start) & (key < end)) | (key < prefix)) & (key >= lowest)


def loop_over_blocks(ranges: Any, tile: Any, step: Any, carry: Any) -> Any:
    """Runs `step(masked, index, carry)` for every step of a tile; those in the middle need no mask."""
    whole, whole_end, steps = ranges[tile, WHOLE], ranges[tile, WHOLE_END], ranges[tile, STEPS]

    def masked(index: Any, carry: Any) -> Any:
        return step(True, index, carry)

    def unmasked(index: Any, carry: Any) -> Any:
        return step(False, index, carry)

    carry = jax.lax.fori_loop(0, whole, masked, carry)
    carry = jax.lax.fori_loop(whole, whole_end, unmasked, carry)
    return jax.lax.fori_loop(whole_end, steps, masked, carry)


def copy_blocks(steps: Any, stages: int, copy: Any) -> None:
    """The copying warpgroup: `copy(step, stage, free)` for every step; `free(barrier)` waits until a buffer is free."""
    plgpu.set_max_registers(COPYING, action="decrease")

    def one(index: Any, _: Any) -> None:
        stage = jax.lax.rem(index, stages)

        def free(barrier: Any) -> None:
            pl.when(index >= stages)(lambda: plgpu.barrier_wait(barrier.at[stage]))

        copy(index, stage, free)

    jax.lax.fori_loop(0, steps, one, None)
