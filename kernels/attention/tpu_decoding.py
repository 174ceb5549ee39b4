"""Attention of a few queries to a long cache on TPUs: decoding by tokens and by small chunks (Pallas Mosaic).

The time is that of reading keys and values once, so everything else has to be small. Heads are packed side by side: the
queries of as many heads as have room in 128 rows stand in one block-diagonal matrix, whose product with the keys of
those heads is the logits of all of them, row by row. The cache is read where it lies (no layer of it is copied), and
only as far as something is seen.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from starflow_jax.kernels.attention.masks import Visibility
from starflow_jax.kernels.attention.schedule import EMPTY, FIRST, LAST, PARTIAL, Problem, schedule

_LOWEST, _HIDDEN = -1e30, -3e30
_ROWS = 128
_LONGEST_BLOCK = 512


def rows_of(heads: int, kv_heads: int, queries: int) -> int:
    """Rows that the queries of one key head take."""
    return heads // kv_heads * queries


def packed_heads(heads: int, kv_heads: int, queries: int, dim: int, itemsize: int, memory: int) -> int:
    """Key heads whose queries stand together; 0 where not even one has room."""
    rows = rows_of(heads, kv_heads, queries)
    fits = memory // (2 * 2 * 2 * dim * _LONGEST_BLOCK * itemsize)  # keys and values, twice, and as much again
    most = min(_ROWS // rows, fits)
    return max((n for n in range(1, most + 1) if kv_heads % n == 0), default=0)


def decode(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    offset: Any,
    length: Any,
    *,
    layer: Any,
    rule: Visibility,
    packed: int,
    memory: int,
    exact: bool = True,
    interpret: bool = False,
) -> jax.Array:
    """Attention of the queries of slots offset .. offset + n - 1.

    Args:
      query: [B, h, n, d], already multiplied by the softmax scale; keys, values: [layers, B, k, S, d].
      offset, length, layer: integers or traced int32; see `attention_tpu.forward`.
      packed: key heads side by side, of `packed_heads`; memory: bytes of vector memory that may be used.
      exact: float32 products in float32. interpret: run on any device, slowly.

    Returns:
      [B, h, n, d] in the dtype of `values`.
    """
    batch, heads, count, dim = query.shape
    kv_heads, slots = keys.shape[2:4]
    own = rows_of(heads, kv_heads, count)
    rows, parts = packed * own, kv_heads // packed
    block = min(_LONGEST_BLOCK, -(-slots // 128) * 128)
    problem = Problem(rule, rows, slots, count)
    plan = schedule(problem, offset, length, rows, block)
    grouped = query.reshape(batch, parts, packed, own, dim)
    diagonal = jnp.eye(packed, dtype=query.dtype)[:, None, :, None]
    sparse = (grouped[:, :, :, :, None, :] * diagonal).reshape(batch, parts, rows, packed * dim)
    of_cache = pl.BlockSpec(
        (None, None, packed, dim, block), lambda b, part, step, steps, bounds: (bounds[2], b, part, 0, steps[1, step])
    )
    of_rows = pl.BlockSpec((None, None, rows, packed * dim), lambda b, part, *_: (b, part, 0, 0))
    precision = jax.lax.Precision.HIGHEST if exact and query.dtype == jnp.float32 else None
    out = pl.pallas_call(
        functools.partial(_step, problem, block, precision),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, parts, plan.count),
            in_specs=[of_rows, of_cache, of_cache],
            out_specs=of_rows,
            scratch_shapes=[
                pltpu.VMEM((rows, 1), jnp.float32),
                pltpu.VMEM((rows, 1), jnp.float32),
                pltpu.VMEM((rows, packed * dim), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, parts, rows, packed * dim), values.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=memory
        ),
        interpret=interpret,
        name="attention_decode",
    )(
        jnp.asarray(plan.steps, jnp.int32),
        jnp.stack([jnp.asarray(number, jnp.int32) for number in (offset, length, layer)]),
        sparse,
        *(jnp.swapaxes(a, 3, 4) for a in (keys, values)),
    )
    # Every head's rows met the values of all heads of its pack: its own are on the diagonal.
    spread = out.reshape(batch, parts, packed, own, packed, dim)
    return jnp.einsum("bphrhd->bphrd", spread).reshape(batch, heads, count, dim)


def _step(problem, block, precision, steps, bounds, query, keys, values, out, top, weight, total):
    step = pl.program_id(2)
    column, flags = steps[1, step], steps[2, step]
    rows = problem.queries

    @pl.when(flags & FIRST != 0)
    def _():
        top[...] = jnp.full(top.shape, _LOWEST, jnp.float32)
        weight[...] = jnp.zeros(weight.shape, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)

    def visit(masked: bool) -> None:
        key, value = (array[...].reshape(-1, block) for array in (keys, values))
        if masked:
            places = column * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
            there = places < jnp.minimum(bounds[1], problem.slots)
            key, value = (jnp.where(there, array, 0) for array in (key, value))
        logits = jax.lax.dot(query[...], key, precision=precision, preferred_element_type=jnp.float32)
        if masked:
            slot = bounds[0] + jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0), problem.period)
            logits = jnp.where(problem.rule.mask(slot, places) & there, logits, _HIDDEN)
        before = top[...]
        after = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
        weights = jnp.exp(logits - after)
        faded = jnp.exp(before - after)
        weight[...] = weight[...] * faded + jnp.sum(weights, axis=1, keepdims=True)
        total[...] = total[...] * faded + jax.lax.dot_general(
            weights.astype(value.dtype),
            value,
            (((1,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        top[...] = after

    pl.when(flags & (PARTIAL | EMPTY) == 0)(functools.partial(visit, False))
    pl.when((flags & PARTIAL != 0) & (flags & EMPTY == 0))(functools.partial(visit, True))

    @pl.when(flags & LAST != 0)
    def _():
        some = weight[...] > 0
        out[...] = (total[...] * jnp.where(some, 1 / weight[...], 0)).astype(out.dtype)
