"""The backward attention kernel on TPUs (Pallas Mosaic): dq, dk and dv in one pass over the visible blocks.

dk and dv are accumulated over all queries, and over the heads that share them, in the vector memory, dq block by
block, so that every pair of blocks is visited once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Gradients, Residuals
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


class _Refs(NamedTuple):
    """References of a grid step.

    Attributes:
      steps, bounds: scalars.
      q, k, v, do: blocks of query, key, value and of the output's gradient, [1, heads, d, slots].
      lse, delta: [1, heads, 1, block_q]; delta is the sum of out x do over channels.
      dq: a block of results; dk, dv: [1, heads, d, S] float32, accumulated in place.
      dq_acc: [heads, d, block_q] float32.
    """

    steps: Any
    bounds: Any
    q: Any
    k: Any
    v: Any
    do: Any
    lse: Any
    delta: Any
    dq: Any
    dk: Any
    dv: Any
    dq_acc: Any


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
    dq, dk, dv = pl.pallas_call(
        lambda *refs: _backward_step(step, _Refs(*refs)),
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


def _backward_step(step: Step, refs: _Refs) -> None:
    turn, index = pl.program_id(2), pl.program_id(3)
    row, column, flags = (refs.steps[i, index] for i in range(3))
    num_heads, group = step.heads.query_heads, step.heads.group

    @pl.when((turn == 0) & (index == 0))
    def _() -> None:
        # A loop, since the compiler writes one instruction for every register of a store.
        @pl.loop(0, refs.dk.shape[-1] // step.block_k)
        def _(block: Any) -> None:
            slots = pl.ds(pl.multiple_of(block * step.block_k, step.block_k), step.block_k)
            for sums in (refs.dk, refs.dv):
                sums[..., slots] = jnp.zeros((*sums.shape[:-1], step.block_k), jnp.float32)

    @pl.when(flags & FIRST != 0)
    def _() -> None:
        refs.dq_acc[...] = jnp.zeros(refs.dq_acc.shape, jnp.float32)

    def visit(masked: bool) -> None:
        masks: tuple[Any, Any, Any] = step.masks(refs.bounds, row, column) if masked else (None, None, None)
        mask, valid_q, valid_k = masks
        slots = pl.ds(pl.multiple_of(column * step.block_k, step.block_k), step.block_k)

        def operands(head: int) -> Any:
            q, do, k, v = refs.q[0, head], refs.do[0, head], refs.k[0, head // group], refs.v[0, head // group]
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
            p = jnp.exp(s - lse)
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

    @pl.when(flags & LAST != 0)
    def _() -> None:
        refs.dq[0] = refs.dq_acc[...].astype(refs.dq.dtype)
