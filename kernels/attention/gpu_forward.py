"""The forward attention kernel on Hopper GPUs (Pallas Mosaic GPU): wgmma, and TMA copies ahead of it.

A thread block takes one tile of queries of one head. One warpgroup copies keys and values block by block, as far ahead
as there are buffers; two others multiply, each with its half of the queries.

No GPU has run this yet. Its code runs on threads in the tests (`tests/warpgroups.py`) and is compiled for sm_90a.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from starflow_jax.kernels.attention.call import AttentionCall, Bounds
from starflow_jax.kernels.attention.gpu_blocks import (
    EMPTY_LSE,
    LOG2E,
    LOWEST,
    MASKED,
    MULTIPLYING,
    WORKERS,
    block_start,
    copy_blocks,
    loop_over_blocks,
    padded_rows,
    smem,
    tile_mask,
)
from starflow_jax.kernels.attention.ranges import AHEAD, START, STEPS, query_ranges


class _Refs(NamedTuple):
    """References in global memory.

    Attributes:
      q: [B, h, n, d]; k, v: [layers, B, k, S, d].
      ranges, starts, ends: see `ranges.Ranges`. scalars: layer, prefix.
      o, lse: the results.
    """

    q: Any
    k: Any
    v: Any
    ranges: Any
    starts: Any
    ends: Any
    scalars: Any
    o: Any
    lse: Any


class _Buffers(NamedTuple):
    """Shared memory and barriers: of every worker (q, start, end, lse, ready), of every stage (all others)."""

    q: Any
    k: Any
    v: Any
    start: Any
    end: Any
    lse: Any
    k_arrived: Any
    v_arrived: Any
    ready: Any
    k_free: Any
    v_free: Any


def forward(
    call: AttentionCall,
    query: Float[Array, "B h n d"],
    key: Float[Array, "*layers B k S d"],
    value: Float[Array, "*layers B k S d"],
    bounds: Bounds,
) -> tuple[Float[Array, "B h n d"], Float[Array, "B h n"]]:
    """See `call.AttentionKernel.forward`; lse is [B, h, n] float32."""
    layer = 0 if bounds.layer is None else bounds.layer
    if not call.stacked:
        key, value = key[None], value[None]
    batch, heads, count, _ = query.shape
    tiles = call.tiles
    tile = WORKERS * tiles.block_q
    rows = padded_rows(count, tile)
    query = jnp.pad(query, ((0, 0), (0, 0), (0, rows - count), (0, 0)))
    ranges = query_ranges(call.problem, bounds.offset, bounds.length, rows, tile, tiles.block_k)
    kernel = plgpu.kernel(
        lambda *refs: _forward_entry(call, _Refs(*refs)),
        kernel_name="attention_forward",
        out_type=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32),
        ],
        grid=(heads, -(-rows // tile), batch),
        grid_names=("head", "tile", "batch"),
        num_threads=WORKERS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=call.interpret or None,
    )
    scalars = jnp.stack([jnp.asarray(layer, jnp.int32), jnp.asarray(ranges.prefix, jnp.int32)])
    out, lse = kernel(query, key, value, ranges.tiles, ranges.start, ranges.end, scalars)
    return out[:, :, :count], lse[:, :, :count]


def _forward_entry(call: AttentionCall, refs: _Refs) -> None:
    block_q, block_k, stages, dim = call.tiles.block_q, call.tiles.block_k, call.tiles.stages, call.head_dim
    buffers = _Buffers(
        q=smem((WORKERS, block_q, dim)),
        k=smem((stages, block_k, dim)),
        v=smem((stages, block_k, dim)),
        start=plgpu.SMEM((WORKERS, block_q), jnp.int32),
        end=plgpu.SMEM((WORKERS, block_q), jnp.int32),
        lse=plgpu.SMEM((WORKERS, block_q), jnp.float32),
        k_arrived=plgpu.Barrier(num_barriers=stages),
        v_arrived=plgpu.Barrier(num_barriers=stages),
        ready=plgpu.Barrier(num_arrivals=3, num_barriers=WORKERS),
        k_free=plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
        v_free=plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
    )

    def run(*allocated: Any) -> None:
        worker = jax.lax.axis_index("group")
        pl.when(worker < WORKERS)(lambda: _multiply(call, refs, _Buffers(*allocated), worker))
        pl.when(worker == WORKERS)(lambda: _copy(call, refs, _Buffers(*allocated)))

    pl.run_scoped(run, *buffers, collective_axes="group")


def _tile() -> Any:
    # The last tiles of a causal rule have the most steps, so they run first.
    return jax.lax.axis_size("tile") - 1 - jax.lax.axis_index("tile")


def _multiply(call: AttentionCall, refs: _Refs, buffers: _Buffers, worker: Any) -> None:
    """A warpgroup that multiplies: the online softmax of its rows."""
    block_q, block_k, stages, dim = call.tiles.block_q, call.tiles.block_k, call.tiles.stages, call.head_dim
    batch, head, tile = jax.lax.axis_index("batch"), jax.lax.axis_index("head"), _tile()
    ahead, first = refs.ranges[tile, AHEAD], refs.ranges[tile, START]
    plgpu.set_max_registers(MULTIPLYING, action="increase")
    row = jnp.minimum(tile * (WORKERS * block_q), refs.q.shape[2] - WORKERS * block_q) + worker * block_q
    rows, ready, q = pl.ds(row, block_q), buffers.ready.at[worker], buffers.q.at[worker]
    plgpu.copy_gmem_to_smem(refs.q.at[batch, head, rows], q, ready)
    plgpu.copy_gmem_to_smem(refs.starts.at[rows], buffers.start.at[worker], ready)
    plgpu.copy_gmem_to_smem(refs.ends.at[rows], buffers.end.at[worker], ready)
    plgpu.barrier_wait(ready)
    by_row = plgpu.Layout.WGMMA.reduce(1)
    start, end = (plgpu.load(b.at[worker], (), layout=by_row) for b in (buffers.start, buffers.end))

    def step(masked: bool, index: Any, carry: Any) -> Any:
        acc, m, l_sum = carry
        stage = jax.lax.rem(index, stages)
        plgpu.barrier_wait(buffers.k_arrived.at[stage])

        def multiply_keys(result: Any) -> Any:
            plgpu.wgmma(result, q, plgpu.transpose_ref(buffers.k.at[stage], (1, 0)))
            return result[...]

        s = pl.run_scoped(multiply_keys, plgpu.ACC((block_q, block_k), jnp.float32))
        plgpu.barrier_arrive(buffers.k_free.at[stage])
        if masked:
            base, lowest = block_start(index, first, ahead, block_k, call.num_slots)
            s = jnp.where(tile_mask(base, lowest, refs.scalars[1], start, end, s.shape, 0), s, MASKED)
        # Powers of 2, so that scale and difference are one instruction.
        m_new = jnp.maximum(m, s.max(axis=1) * LOG2E)
        alpha = jnp.exp2(m - m_new)
        p = jnp.exp2(s * LOG2E - jax.lax.broadcast_in_dim(m_new, s.shape, [0]))
        acc *= jax.lax.broadcast_in_dim(alpha, acc.shape, [0])
        l_sum = l_sum * alpha + p.sum(axis=1)
        rounded = p.astype(refs.q.dtype)
        plgpu.barrier_wait(buffers.v_arrived.at[stage])

        def multiply_values(result: Any) -> None:
            plgpu.wgmma(result, rounded, buffers.v.at[stage])

        acc = pl.run_state(multiply_values)(plgpu.ACC.init(acc))
        plgpu.barrier_arrive(buffers.v_free.at[stage])
        return acc, m_new, l_sum

    def filled(shape: tuple[int, ...], fill: float, layout: Any) -> Any:
        return plgpu.layout_cast(jnp.full(shape, fill, jnp.float32), layout)

    carry = (
        filled((block_q, dim), 0.0, plgpu.Layout.WGMMA),
        filled((block_q,), LOWEST, by_row),
        filled((block_q,), 0.0, by_row),
    )
    acc, m, l_sum = loop_over_blocks(refs.ranges, tile, step, carry)
    nonempty = l_sum > 0.0
    scale = jnp.where(nonempty, 1.0 / jnp.where(nonempty, l_sum, 1.0), 0.0)
    q[...] = (acc * jax.lax.broadcast_in_dim(scale, acc.shape, [0])).astype(refs.q.dtype)
    lse = (m + jnp.log2(jnp.where(nonempty, l_sum, 1.0))) * (1 / LOG2E)
    buffers.lse.at[worker][...] = jnp.where(nonempty, lse, EMPTY_LSE)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q, refs.o.at[batch, head, rows])
    plgpu.copy_smem_to_gmem(buffers.lse.at[worker], refs.lse.at[batch, head, rows])
    plgpu.wait_smem_to_gmem(0)


def _copy(call: AttentionCall, refs: _Refs, buffers: _Buffers) -> None:
    """The warpgroup that copies keys and values."""
    block_k, tile, head = call.tiles.block_k, _tile(), jax.lax.axis_index("head")
    group = call.num_heads // call.num_kv_heads
    kv_head = refs.scalars[0], jax.lax.axis_index("batch"), jax.lax.div(head, jnp.int32(group))
    ahead, first = refs.ranges[tile, AHEAD], refs.ranges[tile, START]

    def copy(index: Any, stage: Any, free: Any) -> None:
        base, _ = block_start(index, first, ahead, block_k, call.num_slots)
        for source, buffer, arrived, freed in (
            (refs.k, buffers.k, buffers.k_arrived, buffers.k_free),
            (refs.v, buffers.v, buffers.v_arrived, buffers.v_free),
        ):
            free(freed)
            block = source.at[(*kv_head, pl.ds(base, block_k))]
            plgpu.copy_gmem_to_smem(block, buffer.at[stage], arrived.at[stage])

    copy_blocks(refs.ranges[tile, STEPS], call.tiles.stages, copy)
