"""The forward attention kernel on TPUs (Pallas Mosaic): online softmax over the blocks with visible keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from starflow_jax.kernels.attention.call import AttentionCall, Bounds
from starflow_jax.kernels.attention.rotary import Rotary
from starflow_jax.kernels.attention.schedule import FIRST, LAST, schedule
from starflow_jax.kernels.attention.tpu_blocks import (
    EMPTY_LSE,
    LOWEST,
    MASKED,
    Heads,
    Step,
    compiler_params,
    scalars,
    visit_block,
)
from starflow_jax.kernels.attention.tpu_rotation import LOG2_E, Rotation, with_new_keys

# Rows of ones below the values, whose products are the sums of weights: as many as a register of bfloat16 has.
_ONES = 16


class _Refs(NamedTuple):
    """References of a grid step.

    Attributes:
      steps, bounds: scalars.
      q, k, v: blocks of query, key and value, [1, heads, d, slots].
      o, lse: blocks of the results.
      m: running maximum of the logits, [heads, 1, block_q] float32.
      acc: running sum of weights x values, and below of weights, [heads, d + _ONES, block_q] float32.
      rotation: of q and k; None where they are given rotated.
    """

    steps: Any
    bounds: Any
    q: Any
    k: Any
    v: Any
    o: Any
    lse: Any
    m: Any
    acc: Any
    rotation: Rotation | None = None


def forward(
    call: AttentionCall,
    query: Float[Array, "B h n d"],
    key: Float[Array, "*layers B k S d"],
    value: Float[Array, "*layers B k S d"],
    bounds: Bounds,
) -> tuple[Float[Array, "B h n d"], Float[Array, "B h 1 n"]]:
    """See `call.AttentionKernel.forward`; lse is [B, h, 1, n] float32."""
    if not call.stacked:
        key, value = key[None], value[None]
    step = _step(call, key.shape[2])
    dim = call.head_dim
    blocks = [step.query_block(dim), step.cache_block(), step.cache_block()]
    arrays = [jnp.swapaxes(a, -1, -2) for a in (query, key, value)]
    out, lse = _run(step, bounds, arrays, blocks, query.shape[0])
    return jnp.swapaxes(out, 2, 3), lse


def packed_forward(
    call: AttentionCall, rotary: Rotary, packed: Float[Array, "3 B h d n"], tables: Float[Array, "2 d n"]
) -> tuple[Float[Array, "B h d n"], Float[Array, "B h 1 n"]]:
    """`packed.packed_attention`, of channels by slots, with the binary logarithm of the sum of its weights."""
    step = _step(call, call.num_heads)
    blocks = [
        *(step.packed_block(part, queries=part == 0) for part in range(3)),
        *(step.table_block(queries=queries) for queries in (True, False)),
    ]
    return _run(step, Bounds(0, call.num_slots), [packed] * 3 + [tables] * 2, blocks, packed.shape[1], rotary)


def _step(call: AttentionCall, kv_heads: int) -> Step:
    tiles = call.tiles
    return Step(call, Heads.from_counts(call.num_heads, kv_heads, tiles.heads), tiles.block_q, tiles.block_k)


def _run(
    step: Step, bounds: Bounds, arrays: list[Any], blocks: list[Any], batch: int, rotary: Rotary | None = None
) -> Any:
    """The kernel's output [B, h, d, n] and lse [B, h, 1, n]."""
    call, num_heads, dim = step.call, step.heads.query_heads, step.call.head_dim
    plan = schedule(call.problem, bounds.offset, bounds.length, step.block_q, step.block_k)
    rotated: list[Any] = []
    if rotary is not None:
        plan = with_new_keys(plan)
        padded = -(-call.num_slots // step.block_k) * step.block_k
        rotated = [pltpu.VMEM((num_heads, dim, size), arrays[0].dtype) for size in (step.block_q, padded)]

    def kernel(*refs: Any) -> None:
        if rotary is None:
            _forward_step(step, _Refs(*refs))
        else:
            *operands, query_tables, key_tables, o, lse, m, acc, queries, keys = refs
            rotation = Rotation(rotary, query_tables, key_tables, queries, keys)
            _forward_step(step, _Refs._make([*operands, o, lse, m, acc, rotation]))

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, call.num_kv_heads // step.heads.kv_heads, step.heads.turns, plan.count),
            in_specs=blocks,
            out_specs=[step.query_block(dim), step.query_block(1)],
            scratch_shapes=[
                pltpu.VMEM((num_heads, 1, step.block_q), jnp.float32),
                pltpu.VMEM((num_heads, dim + _ONES, step.block_q), jnp.float32),
                *rotated,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, call.num_heads, dim, call.num_queries), arrays[2].dtype),
            jax.ShapeDtypeStruct((batch, call.num_heads, 1, call.num_queries), jnp.float32),
        ],
        compiler_params=compiler_params(call.tiles.memory),
        interpret=call.interpret,
        name="attention_forward",
    )(*scalars(plan, bounds), *arrays)


def _forward_step(step: Step, refs: _Refs) -> None:
    index = pl.program_id(3)
    row, column, flags = (refs.steps[i, index] for i in range(3))
    num_heads, group, dim = step.heads.query_heads, step.heads.group, step.call.head_dim
    power = jnp.exp if refs.rotation is None else jnp.exp2  # see LOG2_E

    @pl.when(flags & FIRST != 0)
    def _() -> None:
        refs.m[...] = jnp.full(refs.m.shape, LOWEST, jnp.float32)
        refs.acc[...] = jnp.zeros(refs.acc.shape, jnp.float32)

    slots = step.key_slots(column)
    if refs.rotation is not None:
        refs.rotation.rotate(flags, refs.q, refs.k, slots)

    def visit(masked: bool) -> None:
        masks: tuple[Any, Any, Any] = step.masks(refs.bounds, row, column) if masked else (None, None, None)
        mask, valid_q, valid_k = masks

        def logits(head: int) -> jax.Array:
            if refs.rotation is None:
                k, q = refs.k[0, head // group], refs.q[0, head]
            else:
                k, q = refs.rotation.keys[head, :, slots], refs.rotation.queries[head]
            if masked:  # values beyond the end are undefined
                k, q = jnp.where(valid_k, k, 0), jnp.where(valid_q, q, 0)
            s = step.product(k.T, q)
            return jnp.where(mask, s, MASKED) if masked else s

        def accumulate(head: int, s: jax.Array) -> None:
            m_old = refs.m[head]
            m_new = jnp.maximum(m_old, jnp.max(s, axis=0, keepdims=True))
            p = power(s - m_new).astype(refs.v.dtype)
            v = refs.v[0, head // group]
            v = jnp.where(valid_k, v, 0) if masked else v
            v = jnp.concatenate([v, jnp.ones((_ONES, step.block_k), v.dtype)], axis=0)
            refs.acc[head] = refs.acc[head] * power(m_old - m_new) + step.product(v, p)
            refs.m[head] = m_new

        # The next head's logits are started before this head's are used, so that the matrix unit is busy meanwhile.
        current = logits(0)
        for head in range(num_heads):
            upcoming = logits(head + 1) if head + 1 < num_heads else None
            accumulate(head, current)
            if upcoming is not None:
                current = upcoming

    visit_block(flags, visit)

    @pl.when(flags & LAST != 0)
    def _() -> None:
        for head in range(num_heads):
            l_sum = refs.acc[head, dim : dim + 1]
            nonempty = l_sum > 0
            refs.o[0, head] = (refs.acc[head, :dim] * jnp.where(nonempty, 1 / l_sum, 0)).astype(refs.o.dtype)
            log_sum = jnp.log(jnp.where(nonempty, l_sum, 1))
            log_sum = log_sum if refs.rotation is None else log_sum * LOG2_E
            refs.lse[0, head] = jnp.where(nonempty, refs.m[head] + log_sum, EMPTY_LSE)
