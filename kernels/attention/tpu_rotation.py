"""Rotary positions inside the TPU's attention kernels.

The partner of every channel comes from a product with a permutation matrix, which is exact, and for which the matrix
unit has time in these kernels: exchanging rows of a register would take the units that transpose the keys.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from starflow_jax.kernels.attention.rotary import Rotary
from starflow_jax.kernels.attention.schedule import FIRST, Schedule

# The flag of a step that is the first to visit its block of keys, beside those of `schedule`.
NEW_KEYS = 16

# Queries are scaled by it, so that the weights are powers of two of the logits, which saves the kernels a product for
# each of them.
LOG2_E = math.log2(math.e)


class Rotation(NamedTuple):
    """Rotates the operands of a kernel: each block of queries, and each block of keys once for all blocks of queries.

    Attributes:
      rotary: the static description.
      query_tables, key_tables: references to the tables [2, d, block] of the step's queries and keys.
      queries: scratch reference [heads, d, block_q], the step's queries, rotated and multiplied by scale and `LOG2_E`.
      keys: scratch reference [heads, d, S], the rotated keys.
    """

    rotary: Rotary
    query_tables: Any
    key_tables: Any
    queries: Any
    keys: Any

    def rotate(self, flags: Any, query: Any, key: Any, slots: Any) -> None:
        """Fills `queries`, and `keys` at `slots`, from references [1, heads, d, block] where they are not yet."""

        # Loops over heads that are written out, so that the units work on several heads at a time.
        @pl.when(flags & FIRST != 0)
        def _() -> None:
            for head in range(self.queries.shape[0]):
                q = rotated(self.rotary, query[0, head], self.query_tables[...])
                self.queries[head] = (q * (self.rotary.scale * LOG2_E)).astype(self.queries.dtype)

        @pl.when(flags & NEW_KEYS != 0)
        def _() -> None:
            for head in range(self.keys.shape[0]):
                k = rotated(self.rotary, key[0, head], self.key_tables[...])
                self.keys[head, :, slots] = k.astype(self.keys.dtype)


def with_new_keys(plan: Schedule) -> Schedule:
    """A static schedule whose flags say which steps are the first to visit their block of keys."""
    steps = np.array(plan.steps)
    steps[2, np.unique(steps[1], return_index=True)[1]] |= NEW_KEYS
    return Schedule(steps, plan.count)


def rotated(
    rotary: Rotary, x: Float[Array, "d slots"], tables: Float[Array, "2 d slots"], *, back: bool = False
) -> Float[Array, "d slots"]:
    """x rotated, or with `back` by the inverse rotation, in float32."""
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], x.shape[0]), axis) for axis in (0, 1))
    half = x.shape[0] // 2
    partners = columns ^ 1 if rotary.adjacent else jnp.where(columns < half, columns + half, columns - half)
    exchange = jnp.where(rows == partners, 1.0, 0.0).astype(x.dtype)
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    partner = jnp.dot(exchange, x, precision=precision, preferred_element_type=jnp.float32)
    sin = -tables[1] if back else tables[1]
    return x.astype(jnp.float32) * tables[0] + partner * sin
