"""The blocks that a kernel visits: pairs of a block of queries and a block of keys, of which something is seen.

Pairs come query block by query block, keys in order. With slots that are known beforehand they are constants and as
many as needed; with a traced offset or length they are arrays for the most there could be, and their number is traced.
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
    """What a kernel computes, as far as it is static.

    Attributes:
      rule: which slots see which.
      queries, slots: numbers of queries and keys.
      period: query i stands at slot offset + i % period (several heads that share keys, one after the other).
    """

    rule: Visibility
    queries: int
    slots: int
    period: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Steps of a kernel.

    Attributes:
      steps: int32 [3, most]: block of queries, block of keys, flags.
      count: how many of them there are (an int, or a traced int32).
    """

    steps: Any
    count: Any


def schedule(problem: Problem, offset: Any, length: Any, block_q: int, block_k: int) -> Schedule:
    """The steps for queries from slot `offset` on, and keys before slot `length` (ints, or traced int32)."""
    if isinstance(offset, jax.Array) or isinstance(length, jax.Array):
        return _schedule(problem, offset, length, block_q, block_k, jnp)
    found = _schedule(problem, offset, length, block_q, block_k, np)
    return Schedule(np.ascontiguousarray(found.steps[:, : int(found.count)]), int(found.count))


def _schedule(problem: Problem, offset: Any, length: Any, block_q: int, block_k: int, xp: Any) -> Schedule:
    queries, rule = problem.queries, problem.rule
    rows, columns = -(-queries // block_q), -(-problem.slots // block_k)
    first = xp.arange(rows, dtype=np.int32) * block_q
    last = xp.minimum(first + block_q, queries) - 1
    if problem.period < queries:  # a block of several heads' queries may hold any of them
        first, last = first * 0, last * 0 + problem.period - 1
    length = xp.minimum(length, problem.slots)
    (low, end_first), (high, end) = (rule.bounds(xp.asarray(offset + place, np.int32), xp) for place in (first, last))
    low, high = (first * 0 if bound is None else bound for bound in (low, high))
    prefix = min(rule.prefix, problem.slots)
    # Blocks of the prefix, then those of the interval that are not among them.
    ahead = xp.minimum(-(-prefix // block_k), -(-length // block_k))
    start = xp.maximum(low // block_k, ahead)
    end = xp.minimum(end, length)
    stop = xp.where(end > low, -(-end // block_k), 0)
    counts = xp.maximum(stop - start, 0) + ahead
    empty = counts == 0
    counts = xp.maximum(counts, 1)  # a block of queries that sees nothing is written all the same
    ends = xp.cumsum(counts)
    step = xp.arange(rows * columns, dtype=np.int32)
    row = xp.minimum(xp.searchsorted(ends, step, side="right"), rows - 1)
    place = step - (ends[row] - counts[row])
    column = xp.where(place < ahead, place, start[row] + place - ahead)
    column = xp.clip(column, 0, columns - 1)
    # A block is seen whole if all its keys are in the interval of every query or in the prefix, and nothing sticks out.
    stops = (column + 1) * block_k
    inside = (xp.minimum(end_first, length)[row] >= stops) & (high[row] <= xp.maximum(column * block_k, prefix))
    whole = (inside | (stops <= xp.minimum(prefix, length))) & ((row + 1) * block_q <= queries)
    flags = FIRST * (place == 0) + LAST * (place == counts[row] - 1) + PARTIAL * ~whole + EMPTY * empty[row]
    return Schedule(xp.stack([row, column, flags]).astype(np.int32), ends[-1])
