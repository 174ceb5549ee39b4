"""Attention on Hopper GPUs: the forward kernel (Pallas Mosaic GPU: wgmma, and TMA copies ahead of it).

A block of threads takes one tile of queries of one head. One warpgroup copies keys and values block by block, as far
ahead as there are buffers; two others multiply, each with its own half of the queries. Which keys a row sees comes in
as two numbers a row (the start and end of its interval), so that the kernel knows no rule; which blocks a tile visits,
and which of them need no mask, as five numbers a tile. The last tile of queries and the last block of keys are moved
back where they would stick out: rows are then computed twice, alike up to the order of sums, and keys that were seen
before are hidden.

No GPU has run this yet. Its code runs on threads in the tests (`tests/warpgroups.py`) and lowers for CUDA.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from starflow_jax.kernels.attention.ranges import AHEAD, START, STEPS, WHOLE, WHOLE_END, query_ranges
from starflow_jax.kernels.attention.schedule import Problem
from starflow_jax.kernels.choice import Target

_LOWEST, _HIDDEN, _NOTHING = -1e30, -3e30, 1e30
_LOG2E = math.log2(math.e)
# Warpgroups that multiply; one more copies.
WORKERS = 2
_LINE = 8


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of the kernels.

    Attributes:
      block_q: queries of one warpgroup; block_k: keys of one step; stages: buffers of keys and values.
      block_q_backward, block_k_backward, stages_backward: the same of the backward kernels.
    """

    block_q: int = 64
    block_k: int = 128
    stages: int = 2
    block_q_backward: int = 64
    block_k_backward: int = 64
    stages_backward: int = 2

    def __post_init__(self):
        sizes = (self.block_q, self.block_k, self.block_q_backward, self.block_k_backward)
        if any(size < 64 or size % 64 for size in sizes) or min(self.stages, self.stages_backward) < 1:
            raise ValueError(f"blocks must be multiples of 64 and stages >= 1, got {self}")


# By channels of a head; chosen by what fits registers (two tiles of logits of 64 rows) and shared memory, not measured.
BLOCKS = {64: Blocks(stages=4, stages_backward=4), 128: Blocks()}


def refusal(query: jax.Array, key: jax.Array, target: Target, *, stacked: bool, blocks: Any = None) -> str | None:
    """Why no kernel covers a case; None where one does.

    Raises:
      ValueError: `blocks` that are none.
    """
    if blocks is not None and not isinstance(blocks, Blocks):
        raise ValueError(f"tiles of the GPU's kernels must be kernels.attention_gpu.Blocks, got {blocks!r}")
    dim = query.shape[-1]
    if target.capability != "9.0":
        return f"needs a GPU of compute capability 9.0 (Hopper), and this is {target.capability or 'unknown'}"
    if query.dtype != jnp.bfloat16:
        return f"needs bfloat16, and this is {query.dtype}"
    if dim not in BLOCKS:
        return f"needs heads of {' or '.join(map(str, BLOCKS))} channels, and these have {dim}"
    slots = key.shape[-2]
    if stacked and padded_slots(slots, BLOCKS[dim] if blocks is None else blocks) != slots:
        # Others are padded; a cache would be copied at every call.
        return f"needs caches of a multiple of {_LINE} slots, at least 128, and there are {slots}"
    return None


def padded_slots(slots: int, blocks: Blocks) -> int:
    """Slots of keys that the kernels can copy: whole lines of TMA's tiles, and a tile of every kernel at least."""
    return max(-(-slots // _LINE) * _LINE, blocks.block_k, blocks.block_k_backward * WORKERS)


def smem(shape: tuple[int, ...], dtype: Any = jnp.bfloat16) -> Any:
    """A buffer of a matrix that wgmma reads: tiled and swizzled, 64 channels a tile."""
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    offset: Any,
    length: Any,
    *,
    layer: Any = None,
    problem: Problem,
    tiles: Blocks,
    exact: bool = True,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Attention [B, h, n, d], and the logarithms of the sums of its weights [B, h, n], float32.

    Args:
      query: [B, h, n, d], already multiplied by the softmax scale; key, value: [B, k, S, d] with k dividing h, or
        [layers, B, k, S, d] where `layer` is given. bfloat16.
      offset, length, layer: integers or traced int32. problem, tiles: what is seen, and in which blocks.
      exact: not used, as there are no float32 products. interpret: run on a CPU, very slowly.
    """
    if layer is None:
        key, value, layer = key[None], value[None], 0
    batch, heads, count, _ = query.shape
    tile = WORKERS * tiles.block_q
    rows = padded_rows(count, tile)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, rows - count), (0, 0)))
    ranges = query_ranges(problem, offset, length, rows, tile, tiles.block_k)
    kernel = plgpu.kernel(
        functools.partial(_forward_entry, problem.slots, heads // key.shape[2], tiles),
        out_type=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32),
        ],
        grid=(heads, -(-rows // tile), batch),
        grid_names=("head", "tile", "batch"),
        num_threads=WORKERS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret or None,
    )
    numbers = jnp.stack([jnp.asarray(layer, jnp.int32), jnp.asarray(ranges.prefix, jnp.int32)])
    out, sums = kernel(query, key, value, ranges.tiles, ranges.start, ranges.end, numbers)
    return out[:, :, :count], sums[:, :, :count]


def padded_rows(count: int, tile: int) -> int:
    """Rows of arrays with a number a row: a tile at least, and lines of whole 16 bytes, as TMA copies want."""
    return max(-(-count // 8) * 8, tile)


def _forward_entry(slots, group, tiles, query, key, value, ranges, starts, ends, numbers, out, sums):
    block_q, block_k, dim = tiles.block_q, tiles.block_k, query.shape[-1]
    buffers = [
        smem((WORKERS, block_q, dim)),
        smem((tiles.stages, block_k, dim)),
        smem((tiles.stages, block_k, dim)),
        plgpu.SMEM((WORKERS, block_q), jnp.int32),
        plgpu.SMEM((WORKERS, block_q), jnp.int32),
        plgpu.SMEM((WORKERS, block_q), jnp.float32),
    ]
    arrived = [plgpu.Barrier(num_barriers=n) for n in (tiles.stages, tiles.stages)]
    own = plgpu.Barrier(num_arrivals=3, num_barriers=WORKERS)
    free = [plgpu.Barrier(num_arrivals=WORKERS, num_barriers=tiles.stages) for _ in range(2)]
    pl.run_scoped(
        functools.partial(
            _forward_tile, slots, group, tiles, query, key, value, ranges, starts, ends, numbers, out, sums
        ),
        buffers, arrived, own, free,
        collective_axes="group",
    )  # fmt: skip


def block_of(step, start, ahead, block: int, slots: int):
    """First slot of the keys of a step, and the first that it is to see: later where the block was moved back."""
    wanted = jnp.where(step < ahead, step, start + step - ahead) * block
    return jnp.minimum(wanted, slots - block), wanted


def seen(base, wanted, prefix, start, end, shape: tuple[int, int], rows: int):
    """The mask of a tile of logits in wgmma's layout; `rows` is the axis of the queries."""
    key = base + plgpu.broadcasted_iota(jnp.int32, shape, 1 - rows, layout=plgpu.Layout.WGMMA)
    start, end = (jax.lax.broadcast_in_dim(bound, shape, [rows]) for bound in (start, end))
    return (((key >= start) & (key < end)) | (key < prefix)) & (key >= wanted)


def _forward_tile(
    slots, group, tiles, query, key, value, ranges, starts, ends, numbers, out, sums, buffers, arrived, own, free
):
    block_q, block_k, stages, dim = tiles.block_q, tiles.block_k, tiles.stages, query.shape[-1]
    query_buffer, key_buffer, value_buffer, start_buffer, end_buffer, sum_buffer = buffers
    (key_arrived, value_arrived), (key_free, value_free) = arrived, free
    batch, head, worker = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), jax.lax.axis_index("group")
    # The last tiles of a causal rule have most to do: they go first.
    place = jax.lax.axis_size("tile") - 1 - jax.lax.axis_index("tile")
    steps, ahead, first = ranges[place, STEPS], ranges[place, AHEAD], ranges[place, START]

    @pl.when(worker < WORKERS)
    def _():
        plgpu.set_max_registers(232, action="increase")
        row = jnp.minimum(place * (WORKERS * block_q), query.shape[2] - WORKERS * block_q) + worker * block_q
        rows = pl.ds(row, block_q)
        ready, matrix = own.at[worker], query_buffer.at[worker]
        plgpu.copy_gmem_to_smem(query.at[batch, head, rows], matrix, ready)
        plgpu.copy_gmem_to_smem(starts.at[rows], start_buffer.at[worker], ready)
        plgpu.copy_gmem_to_smem(ends.at[rows], end_buffer.at[worker], ready)
        plgpu.barrier_wait(ready)
        by_row = plgpu.Layout.WGMMA.reduce(1)
        start, end = (plgpu.load(b.at[worker], (), layout=by_row) for b in (start_buffer, end_buffer))

        def step(masked: bool, number, carry):
            total, top, weight = carry
            slot = jax.lax.rem(number, stages)
            plgpu.barrier_wait(key_arrived.at[slot])

            def products(result):
                plgpu.wgmma(result, matrix, plgpu.transpose_ref(key_buffer.at[slot], (1, 0)))
                return result[...]

            logits = pl.run_scoped(products, plgpu.ACC((block_q, block_k), jnp.float32))
            plgpu.barrier_arrive(key_free.at[slot])
            if masked:
                base, wanted = block_of(number, first, ahead, block_k, slots)
                shown = seen(base, wanted, numbers[1], start, end, logits.shape, 0)
                logits = jnp.where(shown, logits, _HIDDEN)
            # Powers of 2, so that scale and difference are one instruction.
            after = jnp.maximum(top, logits.max(axis=1) * _LOG2E)
            faded = jnp.exp2(top - after)
            weights = jnp.exp2(logits * _LOG2E - jax.lax.broadcast_in_dim(after, logits.shape, [0]))
            total *= jax.lax.broadcast_in_dim(faded, total.shape, [0])
            weight = weight * faded + weights.sum(axis=1)
            rounded = weights.astype(query.dtype)
            plgpu.barrier_wait(value_arrived.at[slot])

            def mix(result):
                plgpu.wgmma(result, rounded, value_buffer.at[slot])

            total = pl.run_state(mix)(plgpu.ACC.init(total))
            plgpu.barrier_arrive(value_free.at[slot])
            return total, after, weight

        def filled(shape, number, layout):
            return plgpu.layout_cast(jnp.full(shape, number, jnp.float32), layout)

        carry = (
            filled((block_q, dim), 0.0, plgpu.Layout.WGMMA),
            filled((block_q,), _LOWEST, by_row),
            filled((block_q,), 0.0, by_row),
        )
        whole, whole_end = ranges[place, WHOLE], ranges[place, WHOLE_END]
        carry = jax.lax.fori_loop(0, whole, functools.partial(step, True), carry)
        carry = jax.lax.fori_loop(whole, whole_end, functools.partial(step, False), carry)
        total, top, weight = jax.lax.fori_loop(whole_end, steps, functools.partial(step, True), carry)
        some = weight > 0.0
        scale = jnp.where(some, 1.0 / jnp.where(some, weight, 1.0), 0.0)
        matrix[...] = (total * jax.lax.broadcast_in_dim(scale, total.shape, [0])).astype(query.dtype)
        logarithm = (top + jnp.log2(jnp.where(some, weight, 1.0))) * (1 / _LOG2E)
        sum_buffer.at[worker][...] = jnp.where(some, logarithm, _NOTHING)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(matrix, out.at[batch, head, rows])
        plgpu.copy_smem_to_gmem(sum_buffer.at[worker], sums.at[batch, head, rows])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(worker == WORKERS)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        of_head = numbers[0], batch, jax.lax.div(head, jnp.int32(group))

        def copy(number, _):
            slot = jax.lax.rem(number, stages)
            base, _ = block_of(number, first, ahead, block_k, slots)
            for array, buffer, ready, done in (
                (key, key_buffer, key_arrived, key_free),
                (value, value_buffer, value_arrived, value_free),
            ):
                pl.when(number >= stages)(functools.partial(lambda done: plgpu.barrier_wait(done.at[slot]), done))
                plgpu.copy_gmem_to_smem(array.at[(*of_head, pl.ds(base, block_k))], buffer.at[slot], ready.at[slot])

        jax.lax.fori_loop(0, steps, copy, None)
