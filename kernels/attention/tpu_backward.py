"""The backward attention kernel on TPUs (Pallas Mosaic): dq, dk and dv in one pass over the visible blocks.

dk and dv are accumulated over all queries, and over the heads that share them, in the vector memory, dq block by
block, so that every pair of blocks is visited once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Gradients, Residuals
from starflow_jax.kernels.attention.rotary import Rotary
from starflow_jax.kernels.attention.schedule import FIRST, LAST, schedule
from starflow_jax.kernels.attention.tpu_blocks import (
    EMPTY_LSE,
    TRANSPOSED,
    Heads,
    Step,
    compiler_params,
    scalars,
    visit_block,
)
from starflow_jax.kernels.attention.tpu_rotation import LOG2_E, Rotation, rotated, with_new_keys


class _Refs(NamedTuple):
    """References of a grid step.

    Attributes:
      steps, bounds: scalars.
      q, k, v, do: blocks of query, key, value and of the output's gradient, [1, heads, d, slots].
      lse, delta: [1, heads, 1, block_q]; delta is the sum of out x do over channels.
      dk, dv: sums, [1, heads, d, S] float32.
      dq_acc: [heads, d, block_q] float32.
      rotation: of q and k; None where they are given rotated.
    """

    steps: Any
    bounds: Any
    q: Any
    k: Any
    v: Any
    do: Any
    lse: Any
    delta: Any
    dk: Any
    dv: Any
    dq_acc: Any
    rotation: Rotation | None = None


def backward(call: AttentionCall, residuals: Residuals, do: Float[Array, "B h n d"], bounds: Bounds) -> Gradients:
    """See `call.AttentionKernel.backward`."""
    query, key, value, out, lse = residuals
    batch, heads, count, dim = query.shape
    kv_heads, slots, tiles = key.shape[1], call.num_slots, call.tiles
    shared = Heads.from_counts(heads, kv_heads, tiles.heads_backward)
    step = Step(call, shared, tiles.block_q_backward, tiles.block_k_backward)
    plan = schedule(call.problem, bounds.offset, bounds.length, step.block_q, step.block_k)
    padded = -(-slots // step.block_k) * step.block_k
    delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), axis=-1)[:, :, None]
    rows, keys, row = step.query_block(dim), step.key_block(), step.query_block(1)
    whole = pl.BlockSpec((1, shared.kv_heads, dim, padded), lambda b, k, turn, step, *_: (b, k, 0, 0))

    def kernel(*refs: Any) -> None:
        *operands, dq, dk, dv, dq_acc = refs
        inner = _Refs._make([*operands, dk, dv, dq_acc, None])
        _accumulate(step, inner)

        @pl.when(_step_of(inner)[2] & LAST != 0)
        def _() -> None:
            dq[0] = dq_acc[...].astype(dq.dtype)

    dq, dk, dv = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, kv_heads // shared.kv_heads, shared.turns, plan.count),
            in_specs=[rows, keys, keys, rows, row, row],
            out_specs=[rows, whole, whole],
            scratch_shapes=[pltpu.VMEM((shared.query_heads, dim, step.block_q), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, dim, count), query.dtype),
            *(jax.ShapeDtypeStruct((batch, kv_heads, dim, padded), jnp.float32) for _ in range(2)),
        ],
        compiler_params=compiler_params(tiles.memory),
        interpret=call.interpret,
        name="attention_backward",
    )(
        *scalars(plan, bounds),
        *(jnp.swapaxes(a, 2, 3) for a in (query, key, value, do.astype(value.dtype))),
        lse,
        delta,
    )
    dk, dv = (a[..., :slots].astype(like.dtype) for a, like in ((dk, key), (dv, value)))
    return jnp.swapaxes(dq, 2, 3), jnp.swapaxes(dk, 2, 3), jnp.swapaxes(dv, 2, 3)


class _PackedRefs(NamedTuple):
    """References of a grid step of `packed_backward`.

    Attributes:
      steps, bounds, q, k, v, do, lse: as in `_Refs`; out: blocks of the output, as `do`.
      tables: of rotary positions, [2, d, slots], of all slots.
      gradient: [3, 1, heads, d, slots], and totals: [1, 1, 3, heads, d] float32, its sums over slots.
      delta, dk, dv, dq_acc: as in `_Refs`, scratch; queries, keys: of `Rotation`.
    """

    steps: Any
    bounds: Any
    q: Any
    k: Any
    v: Any
    do: Any
    out: Any
    lse: Any
    tables: Any
    gradient: Any
    totals: Any
    delta: Any
    dk: Any
    dv: Any
    dq_acc: Any
    queries: Any
    keys: Any


def packed_backward(
    call: AttentionCall,
    rotary: Rotary,
    packed: Float[Array, "3 B h d n"],
    tables: Float[Array, "2 d n"],
    out: Float[Array, "B h d n"],
    lse: Float[Array, "B h 1 n"],
    do: Float[Array, "B h d n"],
) -> tuple[Float[Array, "3 B h d n"], Float[Array, "3 h d"]]:
    """The gradients of `packed.packed_attention` by `packed`, of channels by slots, and by `bias`."""
    tiles, dim, count = call.tiles, call.head_dim, call.num_slots
    shared = Heads.from_counts(call.num_heads, call.num_heads, tiles.heads_backward)
    step = Step(call, shared, tiles.block_q_backward, tiles.block_k_backward)
    plan = with_new_keys(schedule(call.problem, 0, count, step.block_q, step.block_k))
    padded = math.lcm(step.block_q, step.block_k)
    padded *= -(-count // padded)
    heads = shared.query_heads
    rows, row = step.query_block(dim), step.query_block(1)
    whole = pl.BlockSpec((3, 1, heads, dim, padded), lambda b, k, turn, step, *_: (0, b, k, 0, 0))
    tables_block = pl.BlockSpec(
        (2, dim, padded), lambda b, k, turn, step, *_: (0, 0, 0), pipeline_mode=pl.Buffered(1)
    )  # one buffer, since every step has the same block
    sums = pltpu.VMEM((1, heads, dim, padded), jnp.float32)
    groups = call.num_heads // heads
    gradient, totals = pl.pallas_call(
        lambda *refs: _packed_backward_step(step, rotary, _PackedRefs(*refs)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(packed.shape[1], groups, 1, plan.count),
            in_specs=[
                *(step.packed_block(part, queries=part == 0) for part in range(3)),
                rows,
                rows,
                row,
                tables_block,
            ],
            out_specs=[whole, pl.BlockSpec((1, 1, 3, heads, dim), lambda b, k, turn, step, *_: (b, k, 0, 0, 0))],
            scratch_shapes=[
                pltpu.VMEM((1, heads, 1, step.block_q), jnp.float32),
                sums,
                sums,
                pltpu.VMEM((heads, dim, step.block_q), jnp.float32),
                pltpu.VMEM((heads, dim, step.block_q), packed.dtype),
                pltpu.VMEM((heads, dim, padded), packed.dtype),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(packed.shape, packed.dtype),
            jax.ShapeDtypeStruct((packed.shape[1], groups, 3, heads, dim), jnp.float32),
        ],
        compiler_params=compiler_params(tiles.memory),
        interpret=call.interpret,
        name="attention_backward",
    )(*scalars(plan, Bounds(0, count)), packed, packed, packed, do.astype(packed.dtype), out, lse, tables)
    return gradient, jnp.sum(totals, axis=0).swapaxes(0, 1).reshape(3, call.num_heads, dim)


def _packed_backward_step(step: Step, rotary: Rotary, refs: _PackedRefs) -> None:
    heads = step.heads.query_heads
    row, column, flags = (refs.steps[i, pl.program_id(3)] for i in range(3))
    query_slots, key_slots = step.query_slots(row), step.key_slots(column)
    tables = (refs.tables.at[:, :, slots] for slots in (query_slots, key_slots))
    rotation = Rotation(rotary, *tables, refs.queries, refs.keys)
    rotation.rotate(flags, refs.q, refs.k, key_slots)
    inner = _Refs(
        refs.steps, refs.bounds, refs.q, refs.k, refs.v, refs.do, refs.lse, refs.delta,
        refs.dk, refs.dv, refs.dq_acc, rotation,
    )  # fmt: skip

    @pl.when(flags & FIRST != 0)
    def _() -> None:
        for head in range(heads):
            product = refs.out[0, head].astype(jnp.float32) * refs.do[0, head].astype(jnp.float32)
            refs.delta[0, head] = jnp.sum(product, axis=0, keepdims=True)

    _accumulate(step, inner)

    @pl.when(pl.program_id(3) == 0)
    def _() -> None:
        refs.totals[...] = jnp.zeros(refs.totals.shape, jnp.float32)

    def write(part: int, head: int, slots: Any, x: Float[Array, "d slots"]) -> None:
        x = x.astype(refs.gradient.dtype)
        refs.gradient[part, 0, head, :, slots] = x
        if step.call.num_slots % slots.size:  # values beyond the end are undefined
            lanes = slots.start + jax.lax.broadcasted_iota(jnp.int32, (1, slots.size), 1)
            x = jnp.where(lanes < step.call.num_slots, x, 0)
        # A product, since the matrix unit has time: 8 rows of ones, as many as a register has.
        precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        ones = jnp.ones((8, slots.size), x.dtype)
        total = jax.lax.dot_general(ones, x, TRANSPOSED, precision=precision, preferred_element_type=jnp.float32)
        refs.totals[0, 0, part, head : head + 1] += total[:1]

    @pl.when(flags & LAST != 0)
    def _() -> None:
        for head in range(heads):
            dq = (refs.dq_acc[head] * rotary.scale).astype(refs.gradient.dtype)
            write(0, head, query_slots, rotated(rotary, dq, rotation.query_tables[...], back=True))

    @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
    def _() -> None:
        @pl.loop(0, refs.dk.shape[-1] // step.block_k)
        def _(block: Any) -> None:
            slots = step.key_slots(block)
            for head in range(heads):
                dk = (refs.dk[0, head, :, slots] * (1 / LOG2_E)).astype(refs.gradient.dtype)
                write(1, head, slots, rotated(rotary, dk, refs.tables[:, :, slots], back=True))
                write(2, head, slots, refs.dv[0, head, :, slots])


def _step_of(refs: _Refs) -> tuple[Any, Any, Any]:
    """The block of queries, the block of keys and the flags of this grid step."""
    row, column, flags = (refs.steps[i, pl.program_id(3)] for i in range(3))
    return row, column, flags


def _accumulate(step: Step, refs: _Refs) -> None:
    """Adds a pair of blocks to the sums of dq, dk and dv."""
    turn, index = pl.program_id(2), pl.program_id(3)
    row, column, flags = _step_of(refs)
    num_heads, group = step.heads.query_heads, step.heads.group

    @pl.when((turn == 0) & (index == 0))
    def _() -> None:
        # A loop, since the compiler writes one instruction for every register of a store.
        @pl.loop(0, refs.dk.shape[-1] // step.block_k)
        def _(block: Any) -> None:
            slots = step.key_slots(block)
            for sums in (refs.dk, refs.dv):
                sums[..., slots] = jnp.zeros((*sums.shape[:-1], step.block_k), jnp.float32)

    @pl.when(flags & FIRST != 0)
    def _() -> None:
        refs.dq_acc[...] = jnp.zeros(refs.dq_acc.shape, jnp.float32)

    def visit(masked: bool) -> None:
        masks: tuple[Any, Any, Any] = step.masks(refs.bounds, row, column) if masked else (None, None, None)
        mask, valid_q, valid_k = masks
        slots = step.key_slots(column)

        def operands(head: int) -> Any:
            do, v = refs.do[0, head], refs.v[0, head // group]
            if refs.rotation is None:
                q, k = refs.q[0, head], refs.k[0, head // group]
            else:
                q, k = refs.rotation.queries[head], refs.rotation.keys[head, :, slots]
            if masked:  # values beyond the end are undefined
                q, do = jnp.where(valid_q, q, 0), jnp.where(valid_q, do, 0)
                k, v = jnp.where(valid_k, k, 0), jnp.where(valid_k, v, 0)
            return q, do, k, v

        def products(head: int) -> tuple[jax.Array, jax.Array]:
            """The logits and the gradient of the weights."""
            q, do, k, v = operands(head)
            return step.product(k.T, q), step.product(v.T, do)

        def accumulate(head: int, s: jax.Array, dp: jax.Array) -> None:
            q, do, k, _ = operands(head)
            lse, delta = refs.lse[0, head], refs.delta[0, head]
            if masked:
                lse, delta = jnp.where(valid_q, lse, EMPTY_LSE), jnp.where(valid_q, delta, 0)
            p = jnp.exp(s - lse) if refs.rotation is None else jnp.exp2(s - lse)  # see LOG2_E
            p = jnp.where(mask, p, 0) if masked else p
            ds = (p * (dp - delta)).astype(refs.q.dtype)
            index = (0, head // group, slice(None), slots)
            refs.dv[index] += step.product(do, p.astype(refs.v.dtype), TRANSPOSED)
            refs.dk[index] += step.product(q, ds, TRANSPOSED)
            refs.dq_acc[head] += step.product(k, ds)

        current = products(0)
        for head in range(num_heads):
            upcoming = products(head + 1) if head + 1 < num_heads else None
            accumulate(head, *current)
            if upcoming is not None:
                current = upcoming

    visit_block(flags, visit)
