"""Gradients of attention on Hopper GPUs (Pallas Mosaic GPU): one kernel for queries, one for keys and values.

The first goes over the blocks of keys that a tile of queries sees, the second over the blocks of queries that see a
tile of keys, with everything transposed, so that every sum stays in the registers of one warpgroup. Both compute the
weights anew. Keys that several heads share get one gradient a head, which XLA adds up.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from starflow_jax.kernels.attention.gpu import WORKERS, Blocks, block_of, padded_rows, seen, smem
from starflow_jax.kernels.attention.ranges import AHEAD, START, STEPS, WHOLE, WHOLE_END, key_ranges, query_ranges
from starflow_jax.kernels.attention.schedule import Problem

_NOTHING = 1e30
_LOG2E = math.log2(math.e)


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    out: jax.Array,
    sums: jax.Array,
    gradient: jax.Array,
    offset: Any,
    length: Any,
    *,
    problem: Problem,
    tiles: Blocks,
    exact: bool = True,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients with respect to query, key and value [B, k, S, d], in their shapes and dtypes.

    Args:
      query, key, value, offset, length, problem, tiles, exact, interpret: as in `attention_gpu.forward`.
      out, sums: what it returned; gradient: of `out`.
    """
    batch, heads, count, dim = query.shape
    kv_heads, slots = key.shape[1], problem.slots
    block_q, block_k = tiles.block_q_backward, tiles.block_k_backward
    tile_q, tile_k = WORKERS * block_q, WORKERS * block_k
    rows = padded_rows(count, tile_q)
    inner = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)
    above = ((0, 0), (0, 0), (0, rows - count))
    query, gradient = (jnp.pad(a.astype(key.dtype), (*above, (0, 0))) for a in (query, gradient))
    inner, sums = jnp.pad(inner, above), jnp.pad(sums, above, constant_values=_NOTHING)
    options: dict[str, Any] = {
        "num_threads": WORKERS + 1,
        "thread_name": "group",
        "grid_names": ("head", "tile", "batch"),
        "compiler_params": plgpu.CompilerParams(approx_math=True),
        "interpret": interpret or None,
    }
    group = heads // kv_heads
    ranges = query_ranges(problem, offset, length, rows, tile_q, block_k)
    numbers = jnp.stack([jnp.int32(0), jnp.asarray(ranges.prefix, jnp.int32)])
    of_query = plgpu.kernel(
        functools.partial(_entry, functools.partial(_query_tile, slots, group, tiles), tiles, True),
        out_type=jax.ShapeDtypeStruct(query.shape, query.dtype),
        grid=(heads, -(-rows // tile_q), batch),
        **options,
    )(query, gradient, sums, inner, key, value, ranges.tiles, ranges.start, ranges.end, numbers)
    tiles_of_keys = key_ranges(problem, ranges, rows, tile_k, block_q)
    per_head = jax.ShapeDtypeStruct((batch, heads, slots, dim), key.dtype)
    of_keys = plgpu.kernel(
        functools.partial(_entry, functools.partial(_key_tile, slots, group, tiles), tiles, False),
        out_type=[per_head, per_head],
        grid=(heads, -(-slots // tile_k), batch),
        **options,
    )(query, gradient, sums, inner, key, value, tiles_of_keys, ranges.start, ranges.end, numbers)
    of_key, of_value = (
        jnp.sum(a.reshape(batch, kv_heads, group, slots, dim), axis=2, dtype=jnp.float32).astype(a.dtype)
        for a in of_keys
    )
    return of_query[:, :, :count], of_key, of_value


def _entry(tile, tiles: Blocks, by_query: bool, query, *arrays) -> None:
    """Buffers: two matrices of every warpgroup, two of every stage, and numbers of rows."""
    dim, stages = query.shape[-1], tiles.stages_backward
    own, other = tiles.block_q_backward, tiles.block_k_backward
    own, other = (own, other) if by_query else (other, own)
    row_shape = (WORKERS, own) if by_query else (stages, other)
    pl.run_scoped(
        functools.partial(tile, query, *arrays),
        [smem((WORKERS, own, dim)) for _ in range(2)],
        [smem((stages, other, dim)) for _ in range(2)],
        [plgpu.SMEM(row_shape, dtype) for dtype in (jnp.float32, jnp.float32, jnp.int32, jnp.int32)],
        plgpu.Barrier(num_arrivals=6 if by_query else 2, num_barriers=WORKERS),
        plgpu.Barrier(num_arrivals=2 if by_query else 6, num_barriers=stages),
        plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
        collective_axes="group",
    )


def _zeros(shape: tuple[int, ...]):
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)


def _product(left, right, shape: tuple[int, int]):
    """left @ right.T of two matrices in shared memory."""

    def multiply(result):
        plgpu.wgmma(result, left, plgpu.transpose_ref(right, (1, 0)))
        return result[...]

    return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))


def _add(total, left, right):
    """total + left @ right, left in registers."""
    return pl.run_state(lambda result: plgpu.wgmma(result, left, right))(plgpu.ACC.init(total))


def _looped(ranges, place, step, carry):
    """The steps of a tile, of which those in the middle need no mask."""
    whole, whole_end = ranges[place, WHOLE], ranges[place, WHOLE_END]
    carry = jax.lax.fori_loop(0, whole, functools.partial(step, True), carry)
    carry = jax.lax.fori_loop(whole, whole_end, functools.partial(step, False), carry)
    return jax.lax.fori_loop(whole_end, ranges[place, STEPS], functools.partial(step, True), carry)


def _copies(steps, stages: int, free, copy) -> None:
    """The copying warpgroup: `copy(step, stage)` as soon as the stage is free."""
    plgpu.set_max_registers(40, action="decrease")

    def one(number, _):
        slot = jax.lax.rem(number, stages)
        pl.when(number >= stages)(lambda: plgpu.barrier_wait(free.at[slot]))
        copy(number, slot)

    jax.lax.fori_loop(0, steps, one, None)


def _query_tile(
    slots, group, tiles, query, gradient, sums, inner, key, value, ranges, starts, ends, numbers, of_query,
    own, others, row_buffers, own_ready, arrived, free,
):  # fmt: skip
    block_q, block_k, stages = tiles.block_q_backward, tiles.block_k_backward, tiles.stages_backward
    batch, head, worker = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), jax.lax.axis_index("group")
    place = jax.lax.axis_size("tile") - 1 - jax.lax.axis_index("tile")
    ahead, first, shape = ranges[place, AHEAD], ranges[place, START], (block_q, block_k)

    @pl.when(worker < WORKERS)
    def _():
        plgpu.set_max_registers(232, action="increase")
        row = jnp.minimum(place * (WORKERS * block_q), query.shape[2] - WORKERS * block_q) + worker * block_q
        rows, ready = pl.ds(row, block_q), own_ready.at[worker]
        own_query, own_gradient = (buffer.at[worker] for buffer in own)
        plgpu.copy_gmem_to_smem(query.at[batch, head, rows], own_query, ready)
        plgpu.copy_gmem_to_smem(gradient.at[batch, head, rows], own_gradient, ready)
        sources = (sums.at[batch, head, rows], inner.at[batch, head, rows], starts.at[rows], ends.at[rows])
        for source, buffer in zip(sources, row_buffers, strict=True):
            plgpu.copy_gmem_to_smem(source, buffer.at[worker], ready)
        plgpu.barrier_wait(ready)
        log_sum, delta, start, end = (
            plgpu.load(buffer.at[worker], (), layout=plgpu.Layout.WGMMA.reduce(1)) for buffer in row_buffers
        )
        log_sum = jax.lax.broadcast_in_dim(log_sum * _LOG2E, shape, [0])
        delta = jax.lax.broadcast_in_dim(delta, shape, [0])

        def step(masked: bool, number, total):
            slot = jax.lax.rem(number, stages)
            plgpu.barrier_wait(arrived.at[slot])
            keys, values = (buffer.at[slot] for buffer in others)
            weights = jnp.exp2(_product(own_query, keys, shape) * _LOG2E - log_sum)
            if masked:
                base, wanted = block_of(number, first, ahead, block_k, slots)
                weights = jnp.where(seen(base, wanted, numbers[1], start, end, shape, 0), weights, 0.0)
            of_logits = weights * (_product(own_gradient, values, shape) - delta)
            total = _add(total, of_logits.astype(key.dtype), keys)
            plgpu.barrier_arrive(free.at[slot])
            return total

        total = _looped(ranges, place, step, _zeros((block_q, query.shape[-1])))
        own_query[...] = total.astype(query.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own_query, of_query.at[batch, head, rows])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(worker == WORKERS)
    def _():
        kv_head = jax.lax.div(head, jnp.int32(group))

        def copy(number, slot):
            base, _ = block_of(number, first, ahead, block_k, slots)
            for array, buffer in zip((key, value), others, strict=True):
                plgpu.copy_gmem_to_smem(
                    array.at[batch, kv_head, pl.ds(base, block_k)], buffer.at[slot], arrived.at[slot]
                )

        _copies(ranges[place, STEPS], stages, free, copy)


def _key_tile(
    slots, group, tiles, query, gradient, sums, inner, key, value, ranges, starts, ends, numbers, of_key, of_value,
    own, others, row_buffers, own_ready, arrived, free,
):  # fmt: skip
    block_q, block_k, stages = tiles.block_q_backward, tiles.block_k_backward, tiles.stages_backward
    batch, head, worker = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), jax.lax.axis_index("group")
    place, dim = jax.lax.axis_index("tile"), query.shape[-1]
    first, shape, rows = ranges[place, START], (block_k, block_q), query.shape[2]

    @pl.when(worker < WORKERS)
    def _():
        plgpu.set_max_registers(232, action="increase")
        slot_of_key = jnp.minimum(place * (WORKERS * block_k), slots - WORKERS * block_k) + worker * block_k
        place_of_keys, ready = pl.ds(slot_of_key, block_k), own_ready.at[worker]
        own_key, own_value = (buffer.at[worker] for buffer in own)
        kv_head = jax.lax.div(head, jnp.int32(group))
        plgpu.copy_gmem_to_smem(key.at[batch, kv_head, place_of_keys], own_key, ready)
        plgpu.copy_gmem_to_smem(value.at[batch, kv_head, place_of_keys], own_value, ready)
        plgpu.barrier_wait(ready)

        def step(masked: bool, number, carry):
            of_own_key, of_own_value = carry
            slot = jax.lax.rem(number, stages)
            plgpu.barrier_wait(arrived.at[slot])
            queries, gradients = (buffer.at[slot] for buffer in others)
            log_sum, delta, start, end = (
                plgpu.load(buffer.at[slot], (), layout=plgpu.Layout.WGMMA.reduce(0)) for buffer in row_buffers
            )
            weights = jnp.exp2(
                _product(own_key, queries, shape) * _LOG2E - jax.lax.broadcast_in_dim(log_sum * _LOG2E, shape, [1])
            )
            if masked:
                base, wanted = block_of(number, first, jnp.int32(0), block_q, rows)
                shown = seen(slot_of_key, jnp.int32(0), numbers[1], start, end, shape, 1)
                row = base + plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA)
                weights = jnp.where(shown & (row >= wanted), weights, 0.0)
            of_own_value = _add(of_own_value, weights.astype(key.dtype), gradients)
            of_logits = weights * (_product(own_value, gradients, shape) - jax.lax.broadcast_in_dim(delta, shape, [1]))
            of_own_key = _add(of_own_key, of_logits.astype(key.dtype), queries)
            plgpu.barrier_arrive(free.at[slot])
            return of_own_key, of_own_value

        found = _looped(ranges, place, step, (_zeros((block_k, dim)), _zeros((block_k, dim))))
        for total, buffer in zip(found, (own_key, own_value), strict=True):
            buffer[...] = total.astype(key.dtype)
        plgpu.commit_smem()
        for buffer, target in ((own_key, of_key), (own_value, of_value)):
            plgpu.copy_smem_to_gmem(buffer, target.at[batch, head, place_of_keys])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(worker == WORKERS)
    def _():
        def copy(number, slot):
            base, _ = block_of(number, first, jnp.int32(0), block_q, rows)
            part = pl.ds(base, block_q)
            row_sources = (sums.at[batch, head, part], inner.at[batch, head, part], starts.at[part], ends.at[part])
            sources = (query.at[batch, head, part], gradient.at[batch, head, part], *row_sources)
            for source, buffer in zip(sources, (*others, *row_buffers), strict=True):
                plgpu.copy_gmem_to_smem(source, buffer.at[slot], arrived.at[slot])

        _copies(ranges[place, STEPS], stages, free, copy)
