"""Code that the TPU's forward and backward attention kernels share: grids, blocks, masks.

Everything is transposed, channels by slots, and so are the logits, keys by queries. Heads are narrower (64) than the
lanes of a register and the matrix unit (128, 256): with slots along the lanes no memory is padded, maxima
and sums run over sublanes, and the narrow side of a product is the one that is streamed through the unit: one of
the two forward products and three of the five backward ones keep it fully busy. docs/performance.md has the gain.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from starflow_jax.kernels.attention.call import AttentionCall, Bounds
from starflow_jax.kernels.attention.schedule import EMPTY, PARTIAL, Schedule

# A maximum starts at LOWEST, below every logit; masked logits are so far below that their weight is 0.
LOWEST, MASKED = -1e30, -3e30
# The lse of a query without visible keys: exp(logit - EMPTY_LSE) is 0.
EMPTY_LSE = 1e30

TRANSPOSED = (((1,), (1,)), ((), ()))  # a product whose right side is transposed


@dataclasses.dataclass(frozen=True)
class Heads:
    """The assignment of heads to grid steps.

    Attributes:
      query_heads, kv_heads: heads of one step.
      turns: steps until all query heads of a kv head are done.
    """

    query_heads: int
    kv_heads: int
    turns: int

    @classmethod
    def from_counts(cls, heads: int, kv_heads: int, max_heads: int) -> Heads:
        """The heads of a step, at most `max_heads` query heads where the groups allow it."""
        group = heads // kv_heads
        if max_heads < group:
            query_heads = max(n for n in range(1, max_heads + 1) if group % n == 0)
            return cls(query_heads, 1, group // query_heads)
        shared = max(n for n in range(1, max(max_heads // group, 1) + 1) if kv_heads % n == 0)
        return cls(shared * group, shared, 1)

    @property
    def group(self) -> int:
        """Query heads of a step on one kv head."""
        return self.query_heads // self.kv_heads


@dataclasses.dataclass(frozen=True)
class Step:
    """The static description of one kernel's grid step."""

    call: AttentionCall
    heads: Heads
    block_q: int
    block_k: int

    def query_block(self, size: int) -> pl.BlockSpec:
        """A block [1, query heads, size, block_q] of the query block that the schedule names."""
        heads = self.heads
        return pl.BlockSpec(
            (1, heads.query_heads, size, self.block_q),
            lambda b, k, turn, step, steps, bounds: (b, k * heads.turns + turn, 0, steps[0, step]),
        )

    def key_block(self) -> pl.BlockSpec:
        """A block [1, kv heads, d, block_k] of the key block that the schedule names."""
        return pl.BlockSpec(
            (1, self.heads.kv_heads, self.call.head_dim, self.block_k),
            lambda b, k, turn, step, steps, bounds: (b, k, 0, steps[1, step]),
        )

    def cache_block(self) -> pl.BlockSpec:
        """As `key_block`, of [layers, B, k, d, S] and the layer that the scalars name."""
        return pl.BlockSpec(
            (None, 1, self.heads.kv_heads, self.call.head_dim, self.block_k),
            lambda b, k, turn, step, steps, bounds: (bounds[2], b, k, 0, steps[1, step]),
        )

    def packed_block(self, part: int, *, queries: bool) -> pl.BlockSpec:
        """A block [1, heads, d, slots] of queries, keys or values, `part` 0, 1 or 2 of [3, B, h, d, n]."""
        return pl.BlockSpec(
            (None, 1, self.heads.query_heads, self.call.head_dim, self.block_q if queries else self.block_k),
            lambda b, k, turn, step, steps, bounds: (part, b, k, 0, steps[0 if queries else 1, step]),
        )

    def table_block(self, *, queries: bool) -> pl.BlockSpec:
        """A block [2, d, slots] of the tables of rotary positions, of the block of queries or of keys."""
        return pl.BlockSpec(
            (2, self.call.head_dim, self.block_q if queries else self.block_k),
            lambda b, k, turn, step, steps, bounds: (0, 0, steps[0 if queries else 1, step]),
        )

    def query_slots(self, row: Any) -> Any:
        """The slots of a block of queries, of an array that holds all of them."""
        return pl.ds(pl.multiple_of(row * self.block_q, self.block_q), self.block_q)

    def key_slots(self, column: Any) -> Any:
        """The slots of a block of keys, of an array that holds all of them."""
        return pl.ds(pl.multiple_of(column * self.block_k, self.block_k), self.block_k)

    def masks(self, bounds: Any, row: Any, column: Any) -> tuple[Any, Any, Any]:
        """The mask [block_k, block_q] of a pair of blocks; which of its queries and which of its keys are valid."""
        problem = self.call.problem
        slot = row * self.block_q + jax.lax.broadcasted_iota(jnp.int32, (1, self.block_q), 1)
        valid_q = slot < problem.queries
        if problem.period < problem.queries:
            slot = jax.lax.rem(slot, problem.period)
        key = column * self.block_k + jax.lax.broadcasted_iota(jnp.int32, (self.block_k, 1), 0)
        mask = problem.rule.mask(bounds[0] + slot, key)
        lanes = column * self.block_k + jax.lax.broadcasted_iota(jnp.int32, (1, self.block_k), 1)
        limit = jnp.minimum(bounds[1], problem.slots)
        return mask & (key < limit) & valid_q, valid_q, lanes < problem.slots

    def product(self, left: Any, right: Any, dims: Any = (((1,), (0,)), ((), ()))) -> Float[Array, "rows columns"]:
        """The product of two blocks, summed in float32."""
        precision = self.call.product_precision
        return jax.lax.dot_general(left, right, dims, precision=precision, preferred_element_type=jnp.float32)


def scalars(plan: Schedule, bounds: Bounds) -> tuple[Int[Array, "fields steps"], Int[Array, "3"]]:
    """The prefetched scalars: steps of the schedule, and offset, length, layer."""
    values = (bounds.offset, bounds.length, 0 if bounds.layer is None else bounds.layer)
    return jnp.asarray(plan.steps, jnp.int32), jnp.stack([jnp.asarray(value, jnp.int32) for value in values])


def compiler_params(memory: int) -> pltpu.CompilerParams:
    """Parameters of a grid [B, kv heads, turns, steps]."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=memory
    )


def visit_block(flags: Any, visit: Callable[[bool], None]) -> None:
    """Runs `visit(masked)`, without a mask for fully visible blocks, and not at all for empty blocks."""
    pl.when(flags & (PARTIAL | EMPTY) == 0)(functools.partial(visit, False))
    pl.when((flags & PARTIAL != 0) & (flags & EMPTY == 0))(functools.partial(visit, True))
