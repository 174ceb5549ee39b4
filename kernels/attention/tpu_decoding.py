"""Attention of a few queries to a long cache on TPUs: decoding by tokens and by small chunks (Pallas Mosaic).

The time is that of reading keys and values once, so all other costs have to be small. Heads are packed: the queries of
as many heads as fit in 128 rows form one block-diagonal matrix, whose product with the keys of those heads is the
logits of all of them, row by row. The cache is read in place (no layer of it is copied), and only up to the last
visible key.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from starflow_jax.kernels.attention.block_sizes import COSTS, chip_name
from starflow_jax.kernels.attention.call import AttentionCall, Bounds, Gradients, Residuals
from starflow_jax.kernels.attention.reference import ReferenceAttention
from starflow_jax.kernels.attention.schedule import FIRST, LAST, Problem, schedule
from starflow_jax.kernels.attention.tpu import tpu_support
from starflow_jax.kernels.attention.tpu_blocks import LOWEST, MASKED, TRANSPOSED, scalars, visit_block
from starflow_jax.kernels.kernel_choice import Support

_MAX_ROWS = 128
_MAX_BLOCK = 512


def packed_heads(heads: int, kv_heads: int, queries: int, dim: int, itemsize: int, memory: int) -> int:
    """The number of kv heads whose queries are packed into one matrix; 0 where not even one fits."""
    rows = heads // kv_heads * queries
    fits = memory // (2 * 2 * 2 * dim * _MAX_BLOCK * itemsize)  # keys and values, twice, and as much again
    most = min(_MAX_ROWS // rows, fits)
    return max((n for n in range(1, most + 1) if kv_heads % n == 0), default=0)


class _Refs(NamedTuple):
    """References of a grid step.

    Attributes:
      steps, bounds: scalars.
      q: the block-diagonal queries [rows, heads x d]; k, v: blocks of the cache, [heads, d, block].
      o: the result; m, l_sum: running maximum and sum of weights, [rows, 1] float32; acc: [rows, heads x d] float32.
    """

    steps: Any
    bounds: Any
    q: Any
    k: Any
    v: Any
    o: Any
    m: Any
    l_sum: Any
    acc: Any


@dataclasses.dataclass(frozen=True)
class TPUDecoding:
    """Attention to one layer of a stacked cache; its derivatives are the reference's."""

    def supports(self, call: AttentionCall) -> Support:
        """See `AttentionKernel`."""
        if not call.stacked or call.tiles is not None:
            return Support("needs the cache of all layers, and chooses its own tiles")
        if not _packed(call):
            return Support(f"needs at most {_MAX_ROWS} queries of the heads that share a key, and these are more")
        return tpu_support(call)

    def prepare(self, call: AttentionCall) -> AttentionCall:
        """See `AttentionKernel`."""
        return call

    def forward(
        self,
        call: AttentionCall,
        query: Float[Array, "B h n d"],
        key: Float[Array, "*layers B k S d"],
        value: Float[Array, "*layers B k S d"],
        bounds: Bounds,
    ) -> tuple[Float[Array, "B h n d"], None]:
        """See `AttentionKernel`."""
        batch, heads, count, dim = query.shape
        kv_heads, slots = key.shape[2:4]
        packed, group = _packed(call), heads // kv_heads * count
        rows, parts = packed * group, kv_heads // packed
        block = min(_MAX_BLOCK, -(-slots // 128) * 128)
        problem = Problem(call.rule, rows, slots, count)
        plan = schedule(problem, bounds.offset, bounds.length, rows, block)
        grouped = query.reshape(batch, parts, packed, group, dim)
        diagonal = jnp.eye(packed, dtype=query.dtype)[:, None, :, None]
        sparse = (grouped[:, :, :, :, None, :] * diagonal).reshape(batch, parts, rows, packed * dim)
        cache_block = pl.BlockSpec(
            (None, None, packed, dim, block),
            lambda b, part, step, steps, bounds: (bounds[2], b, part, 0, steps[1, step]),
        )
        row_block = pl.BlockSpec((None, None, rows, packed * dim), lambda b, part, *_: (b, part, 0, 0))
        out = pl.pallas_call(
            lambda *refs: _decoding_step(call, problem, block, _Refs(*refs)),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(batch, parts, plan.count),
                in_specs=[row_block, cache_block, cache_block],
                out_specs=row_block,
                scratch_shapes=[
                    pltpu.VMEM((rows, 1), jnp.float32),
                    pltpu.VMEM((rows, 1), jnp.float32),
                    pltpu.VMEM((rows, packed * dim), jnp.float32),
                ],
            ),
            out_shape=jax.ShapeDtypeStruct((batch, parts, rows, packed * dim), value.dtype),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_memory(call)
            ),
            interpret=call.interpret,
            name="attention_decode",
        )(*scalars(plan, bounds), sparse, *(jnp.swapaxes(a, 3, 4) for a in (key, value)))
        # The rows of a head were multiplied by the values of all heads of its pack; its result is on the diagonal.
        spread = out.reshape(batch, parts, packed, group, packed, dim)
        return jnp.einsum("bphrhd->bphrd", spread).reshape(batch, heads, count, dim), None

    def backward(
        self, call: AttentionCall, residuals: Residuals, do: Float[Array, "B h n d"], bounds: Bounds
    ) -> Gradients:
        """See `AttentionKernel`."""
        return ReferenceAttention().backward(call, residuals, do, bounds)


def _memory(call: AttentionCall) -> int:
    return COSTS[chip_name(call.target.kind)].memory


def _packed(call: AttentionCall) -> int:
    sizes = (call.num_heads, call.num_kv_heads, call.num_queries, call.head_dim, jnp.dtype(call.dtypes[0]).itemsize)
    return packed_heads(*sizes, _memory(call))


def _decoding_step(call: AttentionCall, problem: Problem, block: int, refs: _Refs) -> None:
    index = pl.program_id(2)
    column, flags = refs.steps[1, index], refs.steps[2, index]

    @pl.when(flags & FIRST != 0)
    def _() -> None:
        refs.m[...] = jnp.full(refs.m.shape, LOWEST, jnp.float32)
        refs.l_sum[...] = jnp.zeros(refs.l_sum.shape, jnp.float32)
        refs.acc[...] = jnp.zeros(refs.acc.shape, jnp.float32)

    def visit(masked: bool) -> None:
        precision = call.product_precision
        k, v = (ref[...].reshape(-1, block) for ref in (refs.k, refs.v))
        slots: Any = None
        valid: Any = None
        if masked:  # values beyond the end are undefined
            slots = column * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
            valid = slots < jnp.minimum(refs.bounds[1], problem.slots)
            k, v = (jnp.where(valid, array, 0) for array in (k, v))
        s = jax.lax.dot(refs.q[...], k, precision=precision, preferred_element_type=jnp.float32)
        if masked:
            row = jax.lax.broadcasted_iota(jnp.int32, (problem.queries, 1), 0)
            query_slots = refs.bounds[0] + jax.lax.rem(row, problem.period)
            s = jnp.where(problem.rule.mask(query_slots, slots) & valid, s, MASKED)
        m_old = refs.m[...]
        m_new = jnp.maximum(m_old, jnp.max(s, axis=1, keepdims=True))
        p = jnp.exp(s - m_new)
        alpha = jnp.exp(m_old - m_new)
        refs.l_sum[...] = refs.l_sum[...] * alpha + jnp.sum(p, axis=1, keepdims=True)
        refs.acc[...] = refs.acc[...] * alpha + jax.lax.dot_general(
            p.astype(v.dtype), v, TRANSPOSED, precision=precision, preferred_element_type=jnp.float32
        )
        refs.m[...] = m_new

    visit_block(flags, visit)

    @pl.when(flags & LAST != 0)
    def _() -> None:
        nonempty = refs.l_sum[...] > 0
        refs.o[...] = (refs.acc[...] * jnp.where(nonempty, 1 / refs.l_sum[...], 0)).astype(refs.o.dtype)
