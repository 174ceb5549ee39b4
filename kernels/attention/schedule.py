"""The schedule of a kernel: the pairs of a block of queries and a block of keys with visible keys.

Pairs are ordered by query block, then by key block. If offset and length are known when the program is traced, the
steps are constants, as many as needed; if either is traced, they are arrays of the maximal size with a traced count.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.kernels.attention.masks import Visibility

# Flags of a step.
FIRST, LAST, PARTIAL, EMPTY = 1, 2, 4, 8


@dataclasses.dataclass(frozen=True)
class Problem:
    """The static inputs of a schedule, besides offset and length.

    Attributes:
      rule: which keys are visible to a query.
      queries, slots: numbers of queries and keys.
      period: query i is at slot offset + i % period (several heads that share keys, one after the other).
    """

    rule: Visibility
    queries: int
    slots: int
    period: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps of a kernel.

    Attributes:
      steps: int32 [3, max steps]: block of queries, block of keys, flags.
      count: number of steps (an int, or a traced int32).
    """

    steps: Any
    count: Any


def schedule(problem: Problem, offset: Any, length: Any, block_q: int, block_k: int) -> Schedule:
    """The steps for queries from slot `offset` on, and keys before slot `length` (ints, or traced int32)."""
    if isinstance(offset, jax.Array) or isinstance(length, jax.Array):
        return _schedule(problem, offset, length, block_q, block_k, jnp)
    padded = _schedule(problem, offset, length, block_q, block_k, np)
    return Schedule(np.ascontiguousarray(padded.steps[:, : int(padded.count)]), int(padded.count))


def _schedule(problem: Problem, offset: Any, length: Any, block_q: int, block_k: int, xp: Any) -> Schedule:
    queries, rule = problem.queries, problem.rule
    rows, columns = -(-queries // block_q), -(-problem.slots // block_k)
    first = xp.arange(rows, dtype=np.int32) * block_q
    last = xp.minimum(first + block_q, queries) - 1
    if problem.period < queries:  # a block of several heads' queries may hold any of them
        first, last = first * 0, last * 0 + problem.period - 1
    length = xp.minimum(length, problem.slots)
    (low, end_first), (high, end) = (rule.bounds(xp.asarray(offset + query, np.int32), xp) for query in (first, last))
    low, high = (first * 0 if bound is None else bound for bound in (low, high))
    prefix = min(rule.prefix, problem.slots)
    # Blocks of the prefix, then those of the interval that are not among them.
    ahead = xp.minimum(-(-prefix // block_k), -(-length // block_k))
    start = xp.maximum(low // block_k, ahead)
    end = xp.minimum(end, length)
    stop = xp.where(end > low, -(-end // block_k), 0)
    counts = xp.maximum(stop - start, 0) + ahead
    empty = counts == 0
    counts = xp.maximum(counts, 1)  # the output of a block of queries without visible keys has to be written, too
    ends = xp.cumsum(counts)
    step = xp.arange(rows * columns, dtype=np.int32)
    row = xp.minimum(xp.searchsorted(ends, step, side="right"), rows - 1)
    index = step - (ends[row] - counts[row])
    column = xp.where(index < ahead, index, start[row] + index - ahead)
    column = xp.clip(column, 0, columns - 1)
    # A block needs no mask if all its keys are in the interval of every query or in the prefix, and none is padding.
    stops = (column + 1) * block_k
    inside = (xp.minimum(end_first, length)[row] >= stops) & (high[row] <= xp.maximum(column * block_k, prefix))
    whole = (inside | (stops <= xp.minimum(prefix, length))) & ((row + 1) * block_q <= queries)
    flags = FIRST * (index == 0) + LAST * (index == counts[row] - 1) + PARTIAL * ~whole + EMPTY * empty[row]
    return Schedule(xp.stack([row, column, flags]).astype(np.int32), ends[-1])
