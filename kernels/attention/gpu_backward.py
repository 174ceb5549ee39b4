"""The backward attention kernels on Hopper GPUs (Pallas Mosaic GPU): one for dq, one for dk and dv.

The first goes over the blocks of keys that are visible to a tile of queries, the second over the blocks of queries that
see a tile of keys, with all operands transposed, so that every sum stays in the registers of one warpgroup. Both
recompute the weights. Keys that several heads share get one gradient a head, which XLA adds up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Gradients, Residuals
from starflow_jax.kernels.attention.gpu_blocks import (
    EMPTY_LSE,
    LOG2E,
    MULTIPLYING,
    WORKERS,
    block_start,
    copy_blocks,
    loop_over_blocks,
    padded_rows,
    smem,
    tile_mask,
)
from starflow_jax.kernels.attention.ranges import AHEAD, START, STEPS, key_ranges, query_ranges


class _Refs(NamedTuple):
    """References in global memory.

    Attributes:
      q, do: [B, h, n, d]; lse, delta: [B, h, n]; k, v: [B, k, S, d].
      ranges, starts, ends: see `ranges.Ranges`. scalars: 0, prefix.
      results: dq, or dk and dv of every query head.
    """

    q: Any
    do: Any
    lse: Any
    delta: Any
    k: Any
    v: Any
    ranges: Any
    starts: Any
    ends: Any
    scalars: Any
    results: tuple[Any, ...]


class _Buffers(NamedTuple):
    """Shared memory and barriers.

    Attributes:
      local: two matrices of every worker (its q and do, or its k and v); streamed: two matrices of every stage.
      rows: lse, delta, start and end of queries, of every worker or of every stage.
      ready: of every worker; arrived, free: of every stage.
    """

    local: Any
    streamed: Any
    rows: Any
    ready: Any
    arrived: Any
    free: Any


def backward(call: AttentionCall, residuals: Residuals, do: Float[Array, "B h n d"], bounds: Bounds) -> Gradients:
    """See `call.AttentionKernel.backward`."""
    query, key, value, out, lse = residuals
    batch, heads, count, dim = query.shape
    kv_heads, slots, tiles = key.shape[1], call.num_slots, call.tiles
    tile_q, tile_k = WORKERS * tiles.block_q_backward, WORKERS * tiles.block_k_backward
    rows = padded_rows(count, tile_q)
    delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), axis=-1)
    padding = ((0, 0), (0, 0), (0, rows - count))
    query, do = (jnp.pad(a.astype(key.dtype), (*padding, (0, 0))) for a in (query, do))
    delta, lse = jnp.pad(delta, padding), jnp.pad(lse, padding, constant_values=EMPTY_LSE)
    options: dict[str, Any] = {
        "num_threads": WORKERS + 1,
        "thread_name": "group",
        "grid_names": ("head", "tile", "batch"),
        "compiler_params": plgpu.CompilerParams(approx_math=True),
        "interpret": call.interpret or None,
    }
    ranges = query_ranges(call.problem, bounds.offset, bounds.length, rows, tile_q, tiles.block_k_backward)
    scalars = jnp.stack([jnp.int32(0), jnp.asarray(ranges.prefix, jnp.int32)])
    arrays = (query, do, lse, delta, key, value)
    dq = plgpu.kernel(
        lambda *refs: _run(call, _Refs._make((*refs[:10], refs[10:])), by_query=True),
        kernel_name="attention_backward_queries",
        out_type=jax.ShapeDtypeStruct(query.shape, query.dtype),
        grid=(heads, -(-rows // tile_q), batch),
        **options,
    )(*arrays, ranges.tiles, ranges.start, ranges.end, scalars)
    key_tiles = key_ranges(call.problem, ranges, rows, tile_k, tiles.block_q_backward)
    per_head = jax.ShapeDtypeStruct((batch, heads, slots, dim), key.dtype)
    gradients = plgpu.kernel(
        lambda *refs: _run(call, _Refs._make((*refs[:10], refs[10:])), by_query=False),
        kernel_name="attention_backward_keys",
        out_type=[per_head, per_head],
        grid=(heads, -(-slots // tile_k), batch),
        **options,
    )(*arrays, key_tiles, ranges.start, ranges.end, scalars)
    dk, dv = (
        jnp.sum(a.reshape(batch, kv_heads, heads // kv_heads, slots, dim), axis=2, dtype=jnp.float32).astype(a.dtype)
        for a in gradients
    )
    return dq[:, :, :count], dk, dv


def _run(call: AttentionCall, refs: _Refs, *, by_query: bool) -> None:
    """One tile of queries (`by_query`) or of keys."""
    tiles, dim = call.tiles, call.head_dim
    stages = tiles.stages_backward
    local, streamed = tiles.block_q_backward, tiles.block_k_backward
    local, streamed = (local, streamed) if by_query else (streamed, local)
    row_shape = (WORKERS, local) if by_query else (stages, streamed)
    buffers = _Buffers(
        local=[smem((WORKERS, local, dim)) for _ in range(2)],
        streamed=[smem((stages, streamed, dim)) for _ in range(2)],
        rows=[plgpu.SMEM(row_shape, dtype) for dtype in (jnp.float32, jnp.float32, jnp.int32, jnp.int32)],
        ready=plgpu.Barrier(num_arrivals=6 if by_query else 2, num_barriers=WORKERS),
        arrived=plgpu.Barrier(num_arrivals=2 if by_query else 6, num_barriers=stages),
        free=plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
    )
    multiply, copy = (_multiply_queries, _copy_keys) if by_query else (_multiply_keys, _copy_queries)

    def run(*allocated: Any) -> None:
        worker = jax.lax.axis_index("group")
        pl.when(worker < WORKERS)(lambda: multiply(call, refs, _Buffers(*allocated), worker))
        pl.when(worker == WORKERS)(lambda: copy(call, refs, _Buffers(*allocated)))

    pl.run_scoped(run, *buffers, collective_axes="group")


def _zeros(shape: tuple[int, ...]) -> Any:
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), plgpu.Layout.WGMMA)


def _product(left: Any, right: Any, shape: tuple[int, int]) -> Any:
    """left @ right.T of two matrices in shared memory."""

    def multiply(result: Any) -> Any:
        plgpu.wgmma(result, left, plgpu.transpose_ref(right, (1, 0)))
        return result[...]

    return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))


def _add(acc: Any, left: Any, right: Any) -> Any:
    """acc + left @ right, left in registers."""
    return pl.run_state(lambda result: plgpu.wgmma(result, left, right))(plgpu.ACC.init(acc))


def _load_row(buffer: Any, index: Any, axis: int) -> Any:
    """One of `_Buffers.rows`, spread over the rows or columns of a tile of logits."""
    return plgpu.load(buffer.at[index], (), layout=plgpu.Layout.WGMMA.reduce(axis))


def _query_tile() -> Any:
    # The last tiles of a causal rule have the most steps, so they run first.
    return jax.lax.axis_size("tile") - 1 - jax.lax.axis_index("tile")


def _kv_head(call: AttentionCall) -> Any:
    return jax.lax.div(jax.lax.axis_index("head"), jnp.int32(call.num_heads // call.num_kv_heads))


def _multiply_queries(call: AttentionCall, refs: _Refs, buffers: _Buffers, worker: Any) -> None:
    """A warpgroup that accumulates dq of its queries."""
    block_q, block_k, stages = call.tiles.block_q_backward, call.tiles.block_k_backward, call.tiles.stages_backward
    batch, head, tile = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), _query_tile()
    ahead, first, shape = refs.ranges[tile, AHEAD], refs.ranges[tile, START], (block_q, block_k)
    plgpu.set_max_registers(MULTIPLYING, action="increase")
    row = jnp.minimum(tile * (WORKERS * block_q), refs.q.shape[2] - WORKERS * block_q) + worker * block_q
    rows, ready = pl.ds(row, block_q), buffers.ready.at[worker]
    q, do = (buffer.at[worker] for buffer in buffers.local)
    plgpu.copy_gmem_to_smem(refs.q.at[batch, head, rows], q, ready)
    plgpu.copy_gmem_to_smem(refs.do.at[batch, head, rows], do, ready)
    sources = [refs.lse.at[batch, head, rows], refs.delta.at[batch, head, rows]]
    sources += [refs.starts.at[rows], refs.ends.at[rows]]
    for source, buffer in zip(sources, buffers.rows, strict=True):
        plgpu.copy_gmem_to_smem(source, buffer.at[worker], ready)
    plgpu.barrier_wait(ready)
    lse, delta, start, end = (_load_row(buffer, worker, 1) for buffer in buffers.rows)
    lse = jax.lax.broadcast_in_dim(lse * LOG2E, shape, [0])
    delta = jax.lax.broadcast_in_dim(delta, shape, [0])

    def step(masked: bool, index: Any, dq: Any) -> Any:
        stage = jax.lax.rem(index, stages)
        plgpu.barrier_wait(buffers.arrived.at[stage])
        k, v = (buffer.at[stage] for buffer in buffers.streamed)
        p = jnp.exp2(_product(q, k, shape) * LOG2E - lse)
        if masked:
            base, lowest = block_start(index, first, ahead, block_k, call.num_slots)
            p = jnp.where(tile_mask(base, lowest, refs.scalars[1], start, end, shape, 0), p, 0.0)
        ds = p * (_product(do, v, shape) - delta)
        dq = _add(dq, ds.astype(refs.k.dtype), k)
        plgpu.barrier_arrive(buffers.free.at[stage])
        return dq

    dq = loop_over_blocks(refs.ranges, tile, step, _zeros((block_q, call.head_dim)))
    q[...] = dq.astype(refs.q.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q, refs.results[0].at[batch, head, rows])
    plgpu.wait_smem_to_gmem(0)


def _copy_keys(call: AttentionCall, refs: _Refs, buffers: _Buffers) -> None:
    """The warpgroup that copies keys and values."""
    block_k, tile = call.tiles.block_k_backward, _query_tile()
    batch, kv_head = jax.lax.axis_index("batch"), _kv_head(call)
    ahead, first = refs.ranges[tile, AHEAD], refs.ranges[tile, START]

    def copy(index: Any, stage: Any, free: Any) -> None:
        free(buffers.free)
        base, _ = block_start(index, first, ahead, block_k, call.num_slots)
        for source, buffer in zip((refs.k, refs.v), buffers.streamed, strict=True):
            block = source.at[batch, kv_head, pl.ds(base, block_k)]
            plgpu.copy_gmem_to_smem(block, buffer.at[stage], buffers.arrived.at[stage])

    copy_blocks(refs.ranges[tile, STEPS], call.tiles.stages_backward, copy)


def _multiply_keys(call: AttentionCall, refs: _Refs, buffers: _Buffers, worker: Any) -> None:
    """A warpgroup that accumulates dk and dv of its keys."""
    block_q, block_k, stages = call.tiles.block_q_backward, call.tiles.block_k_backward, call.tiles.stages_backward
    batch, head, tile = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), jax.lax.axis_index("tile")
    shape, num_rows, dtype, dim = (block_k, block_q), refs.q.shape[2], refs.k.dtype, call.head_dim
    plgpu.set_max_registers(MULTIPLYING, action="increase")
    slot = jnp.minimum(tile * (WORKERS * block_k), call.num_slots - WORKERS * block_k) + worker * block_k
    slots, ready = pl.ds(slot, block_k), buffers.ready.at[worker]
    k, v = (buffer.at[worker] for buffer in buffers.local)
    kv_head = _kv_head(call)
    plgpu.copy_gmem_to_smem(refs.k.at[batch, kv_head, slots], k, ready)
    plgpu.copy_gmem_to_smem(refs.v.at[batch, kv_head, slots], v, ready)
    plgpu.barrier_wait(ready)

    def step(masked: bool, index: Any, carry: Any) -> Any:
        dk, dv = carry
        stage = jax.lax.rem(index, stages)
        plgpu.barrier_wait(buffers.arrived.at[stage])
        q, do = (buffer.at[stage] for buffer in buffers.streamed)
        # Every value is read where it is used: dk, dv and two tiles of logits leave few of the registers, and each
        # number of the queries takes 16 of them.
        lse, delta, start, end = buffers.rows
        p = _product(k, q, shape) * LOG2E
        p = jnp.exp2(p - jax.lax.broadcast_in_dim(_load_row(lse, stage, 0) * LOG2E, shape, [1]))
        if masked:
            base, lowest = block_start(index, refs.ranges[tile, START], jnp.int32(0), block_q, num_rows)
            start, end = (_load_row(bound, stage, 0) for bound in (start, end))
            mask = tile_mask(slot, jnp.int32(0), refs.scalars[1], start, end, shape, 1)
            row = base + plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=plgpu.Layout.WGMMA)
            p = jnp.where(mask & (row >= lowest), p, 0.0)
        dv = _add(dv, p.astype(dtype), do)
        dp = _product(v, do, shape)
        ds = p * (dp - jax.lax.broadcast_in_dim(_load_row(delta, stage, 0), shape, [1]))
        dk = _add(dk, ds.astype(dtype), q)
        plgpu.barrier_arrive(buffers.free.at[stage])
        return dk, dv

    gradients = loop_over_blocks(refs.ranges, tile, step, (_zeros((block_k, dim)), _zeros((block_k, dim))))
    for gradient, buffer in zip(gradients, (k, v), strict=True):
        buffer[...] = gradient.astype(dtype)
    plgpu.commit_smem()
    for buffer, result in zip((k, v), refs.results, strict=True):
        plgpu.copy_smem_to_gmem(buffer, result.at[batch, head, slots])
    plgpu.wait_smem_to_gmem(0)


def _copy_queries(call: AttentionCall, refs: _Refs, buffers: _Buffers) -> None:
    """The warpgroup that copies queries, gradients of the output and numbers of rows."""
    block_q, tile, num_rows = call.tiles.block_q_backward, jax.lax.axis_index("tile"), refs.q.shape[2]
    batch, head, first = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), refs.ranges[tile, START]

    def copy(index: Any, stage: Any, free: Any) -> None:
        free(buffers.free)
        base, _ = block_start(index, first, jnp.int32(0), block_q, num_rows)
        rows = pl.ds(base, block_q)
        sources = [ref.at[batch, head, rows] for ref in (refs.q, refs.do, refs.lse, refs.delta)]
        sources += [refs.starts.at[rows], refs.ends.at[rows]]
        for source, buffer in zip(sources, (*buffers.streamed, *buffers.rows), strict=True):
            plgpu.copy_gmem_to_smem(source, buffer.at[stage], buffers.arrived.at[stage])

    copy_blocks(refs.ranges[tile, STEPS], call.tiles.stages_backward, copy)
