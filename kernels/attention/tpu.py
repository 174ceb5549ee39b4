"""Attention on TPUs: forward and backward kernels (Pallas Mosaic) over the blocks in which something is seen.

Everything lies transposed, channels by slots, also the logits, keys by queries. Heads are narrower (64) than the lanes
of a register and the matrix unit (128, 256): with slots along the lanes nothing is padded in any memory, maxima and
sums run over sublanes, and the narrow side of a product is the one that is streamed through the unit: of the two
products forward one, of the five backward three, keep all of it busy. Sums of weights come from rows of ones under the
values, so that the unit adds them up. What this is worth is counted in docs/performance.md.

The backward pass is one kernel. Gradients of keys and values are summed over all queries (and over the heads that share
them) in the vector memory, those of queries block by block, so that a pair of blocks is visited once.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from starflow_jax.kernels.attention.schedule import EMPTY, FIRST, LAST, PARTIAL, Problem, Schedule, schedule
from starflow_jax.kernels.attention.tiling import Tiles

# A maximum begins at _LOWEST, below every logit, and what is hidden lies so far below that, that its weight is 0.
_LOWEST, _HIDDEN = -1e30, -3e30
# The log of the sum of weights where there are none: exp(logit - _NOTHING) is 0.
_NOTHING = 1e30
# Rows of ones under the values: as many as a register of bfloat16 holds.
_ONES = 16

_TRANSPOSED = (((1,), (1,)), ((), ()))  # a product whose right side is transposed


@dataclasses.dataclass(frozen=True)
class _Heads:
    """How heads share a step: `together` query heads on `shared` key heads; `turns` steps until a key head is done."""

    together: int
    shared: int
    turns: int

    @classmethod
    def of(cls, heads: int, kv_heads: int, wished: int) -> _Heads:
        group = heads // kv_heads
        if wished < group:
            together = max(n for n in range(1, wished + 1) if group % n == 0)
            return cls(together, 1, group // together)
        shared = max(n for n in range(1, max(wished // group, 1) + 1) if kv_heads % n == 0)
        return cls(shared * group, shared, 1)


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    offset: Any,
    length: Any,
    *,
    layer: Any = None,
    problem: Problem,
    tiles: Tiles,
    exact: bool = True,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Attention, and the logarithms of the sums of its weights.

    Args:
      query: [B, h, n, d], already multiplied by the softmax scale; key, value: [B, k, S, d] with k dividing h.
      offset, length: slot of the first query, and of the first key that is not there; integers or traced int32.
      layer: where it is given, key and value are [layers, B, k, S, d], of which the kernel reads this layer.
      exact: float32 products in float32, rather than in one pass of bfloat16.
      problem: what is seen, and the sizes; tiles: see `tiling`.
      interpret: run on any device, slowly.

    Returns:
      [B, h, n, d] in the dtype of `value`, and [B, h, 1, n] float32.
    """
    batch, heads, count, dim = query.shape
    if layer is None:
        key, value, layer = key[None], value[None], 0
    shares = _Heads.of(heads, key.shape[2], tiles.heads)
    block_q, block_k = tiles.block_q, tiles.block_k
    plan = schedule(problem, offset, length, block_q, block_k)
    of_query = functools.partial(_block, shares, "query", dim, block_q)
    of_key = functools.partial(_block, shares, "cache", dim, block_k)
    scratch = [
        pltpu.VMEM((shares.together, 1, block_q), jnp.float32),
        pltpu.VMEM((shares.together, dim + _ONES, block_q), jnp.float32),
    ]
    out, sums = pl.pallas_call(
        functools.partial(_forward_step, problem, shares, block_q, block_k, _precision(query, exact)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, key.shape[2] // shares.shared, shares.turns, plan.count),
            in_specs=[of_query(), of_key(), of_key()],
            out_specs=[of_query(), _block(shares, "query", 1, block_q)],
            scratch_shapes=scratch,
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, dim, count), value.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, count), jnp.float32),
        ],
        compiler_params=_compiler_params(tiles),
        interpret=interpret,
        name="attention_forward",
    )(*_scalars(plan, offset, length, layer), *(jnp.swapaxes(a, -1, -2) for a in (query, key, value)))
    return jnp.swapaxes(out, 2, 3), sums


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
    tiles: Tiles,
    exact: bool = True,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients with respect to query, key and value, in their shapes and dtypes.

    Args:
      query, key, value, offset, length: as in `forward`; out, sums: what it returned; gradient: of `out`.
      problem, tiles, exact, interpret: as in `forward`.
    """
    batch, heads, count, dim = query.shape
    kv_heads, slots = key.shape[1], problem.slots
    shares = _Heads.of(heads, kv_heads, tiles.heads_backward)
    block_q, block_k = tiles.block_q_backward, tiles.block_k_backward
    plan = schedule(problem, offset, length, block_q, block_k)
    padded = -(-slots // block_k) * block_k
    inner = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=-1)[:, :, None]
    of_query = functools.partial(_block, shares, "query", dim, block_q)
    of_key = functools.partial(_block, shares, "key", dim, block_k)
    row = _block(shares, "query", 1, block_q)
    whole = pl.BlockSpec((1, shares.shared, dim, padded), lambda b, k, turn, step, *_: (b, k, 0, 0))
    of_queries, *of_keys = pl.pallas_call(
        functools.partial(_backward_step, problem, shares, block_q, block_k, _precision(query, exact)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, kv_heads // shares.shared, shares.turns, plan.count),
            in_specs=[of_query(), of_key(), of_key(), of_query(), row, row],
            out_specs=[of_query(), whole, whole],
            scratch_shapes=[pltpu.VMEM((shares.together, dim, block_q), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, dim, count), query.dtype),
            *(jax.ShapeDtypeStruct((batch, kv_heads, dim, padded), jnp.float32) for _ in range(2)),
        ],
        compiler_params=_compiler_params(tiles),
        interpret=interpret,
        name="attention_backward",
    )(
        *_scalars(plan, offset, length, 0),
        *(jnp.swapaxes(a, 2, 3) for a in (query, key, value, gradient.astype(value.dtype))),
        sums,
        inner,
    )
    of_keys = [a[..., :slots].astype(like.dtype) for a, like in zip(of_keys, (key, value), strict=True)]
    of_query_rows, of_key_rows, of_value_rows = (jnp.swapaxes(a, 2, 3) for a in (of_queries, *of_keys))
    return of_query_rows, of_key_rows, of_value_rows


def _scalars(plan: Schedule, *numbers: Any) -> tuple[jax.Array, jax.Array]:
    bounds = jnp.stack([jnp.asarray(number, jnp.int32) for number in numbers])
    return jnp.asarray(plan.steps, jnp.int32), bounds


def _precision(query: jax.Array, exact: bool) -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if exact and query.dtype == jnp.float32 else None


def _compiler_params(tiles: Tiles) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=tiles.memory
    )


def _block(shares: _Heads, side: str, rows: int, size: int) -> pl.BlockSpec:
    """A block of so many heads, channels, and slots: those that the step's number says."""
    if side == "query":

        def place(b, k, turn, step, steps, bounds):
            return b, k * shares.turns + turn, 0, steps[0, step]

        return pl.BlockSpec((1, shares.together, rows, size), place)
    if side == "cache":

        def place_in_layer(b, k, turn, step, steps, bounds):
            return bounds[2], b, k, 0, steps[1, step]

        return pl.BlockSpec((None, 1, shares.shared, rows, size), place_in_layer)
    return pl.BlockSpec((1, shares.shared, rows, size), lambda b, k, turn, step, steps, _: (b, k, 0, steps[1, step]))


def _seen(problem: Problem, bounds, row, column, block_q: int, block_k: int) -> tuple[Any, Any, Any]:
    """Which key of a block which query sees, [block_k, block_q]; and which queries and keys there are."""
    slot = row * block_q + jax.lax.broadcasted_iota(jnp.int32, (1, block_q), 1)
    there = slot < problem.queries
    if problem.period < problem.queries:
        slot = jax.lax.rem(slot, problem.period)
    key = column * block_k + jax.lax.broadcasted_iota(jnp.int32, (block_k, 1), 0)
    seen = problem.rule.mask(bounds[0] + slot, key)
    places = column * block_k + jax.lax.broadcasted_iota(jnp.int32, (1, block_k), 1)
    limit = jnp.minimum(bounds[1], problem.slots)
    return seen & (key < limit) & there, there, places < problem.slots


def _product(precision, left, right, dims=(((1,), (0,)), ((), ()))):
    return jax.lax.dot_general(left, right, dims, precision=precision, preferred_element_type=jnp.float32)


def _forward_step(
    problem, shares, block_q, block_k, precision, steps, bounds, query, key, value, out, sums, top, total
):
    step = pl.program_id(3)
    row, column, flags = (steps[i, step] for i in range(3))
    group = shares.together // shares.shared
    dim = query.shape[2]

    @pl.when(flags & FIRST != 0)
    def _():
        top[...] = jnp.full(top.shape, _LOWEST, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)

    def visit(masked: bool) -> None:
        seen: Any = None
        there: Any = None
        places: Any = None
        if masked:
            seen, there, places = _seen(problem, bounds, row, column, block_q, block_k)

        def logits(head: int):
            own_key, own_query = key[0, head // group], query[0, head]
            if masked:  # beyond the end lies anything
                own_key, own_query = jnp.where(places, own_key, 0), jnp.where(there, own_query, 0)
            found = _product(precision, own_key.T, own_query)
            return jnp.where(seen, found, _HIDDEN) if masked else found

        def add(head: int, found) -> None:
            before = top[head]
            after = jnp.maximum(before, jnp.max(found, axis=0, keepdims=True))
            weights = jnp.exp(found - after).astype(value.dtype)
            own = value[0, head // group]
            own = jnp.where(places, own, 0) if masked else own
            own = jnp.concatenate([own, jnp.ones((_ONES, block_k), own.dtype)], axis=0)
            total[head] = total[head] * jnp.exp(before - after) + _product(precision, own, weights)
            top[head] = after

        # The next head's logits are asked for before this head's are used: the matrix unit has work meanwhile.
        ready = logits(0)
        for head in range(shares.together):
            coming = logits(head + 1) if head + 1 < shares.together else None
            add(head, ready)
            ready = coming

    _visits(flags, visit)

    @pl.when(flags & LAST != 0)
    def _():
        for head in range(shares.together):
            weight = total[head, dim : dim + 1]
            some = weight > 0
            out[0, head] = (total[head, :dim] * jnp.where(some, 1 / weight, 0)).astype(out.dtype)
            sums[0, head] = jnp.where(some, top[head] + jnp.log(jnp.where(some, weight, 1)), _NOTHING)


def _backward_step(
    problem, shares, block_q, block_k, precision, steps, bounds,
    query, key, value, gradient, sums, inner, of_query, of_key, of_value, total,
):  # fmt: skip
    turn, step = pl.program_id(2), pl.program_id(3)
    row, column, flags = (steps[i, step] for i in range(3))
    group = shares.together // shares.shared

    @pl.when((turn == 0) & (step == 0))
    def _():
        of_key[...] = jnp.zeros(of_key.shape, jnp.float32)
        of_value[...] = jnp.zeros(of_value.shape, jnp.float32)

    @pl.when(flags & FIRST != 0)
    def _():
        total[...] = jnp.zeros(total.shape, jnp.float32)

    def visit(masked: bool) -> None:
        seen: Any = None
        there: Any = None
        places: Any = None
        if masked:
            seen, there, places = _seen(problem, bounds, row, column, block_q, block_k)
        own_slots = pl.ds(pl.multiple_of(column * block_k, block_k), block_k)

        def operands(head: int) -> Any:
            found: Any = query[0, head], gradient[0, head], key[0, head // group], value[0, head // group]
            if masked:  # beyond the end lies anything
                found = tuple(jnp.where(w, a, 0) for a, w in zip(found, (there, there, places, places), strict=True))
            return found

        def products(head: int):
            own_query, own_gradient, own_key, own_value = operands(head)
            return _product(precision, own_key.T, own_query), _product(precision, own_value.T, own_gradient)

        def add(head: int, found, of_weights) -> None:
            own_query, own_gradient, own_key, _ = operands(head)
            log_sum, own_inner = sums[0, head], inner[0, head]
            if masked:
                log_sum, own_inner = jnp.where(there, log_sum, _NOTHING), jnp.where(there, own_inner, 0)
            weights = jnp.exp(found - log_sum)
            weights = jnp.where(seen, weights, 0) if masked else weights
            of_found = (weights * (of_weights - own_inner)).astype(query.dtype)
            place = (0, head // group, slice(None), own_slots)
            of_value[place] += _product(precision, own_gradient, weights.astype(value.dtype), _TRANSPOSED)
            of_key[place] += _product(precision, own_query, of_found, _TRANSPOSED)
            total[head] += _product(precision, own_key, of_found)

        ready = products(0)
        for head in range(shares.together):
            coming = products(head + 1) if head + 1 < shares.together else None
            add(head, *ready)
            ready = coming

    _visits(flags, visit)

    @pl.when(flags & LAST != 0)
    def _():
        of_query[0] = total[...].astype(of_query.dtype)


def _visits(flags, visit) -> None:
    """One body for blocks that are seen whole, and one that masks."""
    pl.when(flags & (PARTIAL | EMPTY) == 0)(functools.partial(visit, False))
    pl.when((flags & PARTIAL != 0) & (flags & EMPTY == 0))(functools.partial(visit, True))
