"""A visibility rule as the GPU kernels read it: two numbers for each row, and five numbers for each tile.

The kernels loop, so they take ranges of blocks instead of a list of steps (`schedule`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from starflow_jax.kernels.attention.schedule import Problem

# Columns of `Ranges.tiles`: number of steps; the first `AHEAD` steps are the blocks from 0 on, the others those from
# `START` on; steps from `WHOLE` to before `WHOLE_END` need no mask.
STEPS, AHEAD, START, WHOLE, WHOLE_END = range(5)


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The visible blocks of every tile, and the visible interval of every row.

    Attributes:
      tiles: int32 [tiles, 5], see above.
      start, end: int32 [rows], the visible interval of a row; empty for padding.
      prefix: number of keys that are visible to all (an int or a traced int32).
    """

    tiles: Any
    start: Any
    end: Any
    prefix: Any


def query_ranges(problem: Problem, offset: Any, length: Any, rows: int, tile: int, block: int) -> Ranges:
    """The blocks of keys that are visible to tiles of queries; the last tile is moved back to end with the rows.

    Args:
      problem: the rule and the sizes. offset, length: slot of the first query, and of the first invalid key.
      rows: queries, padded to at least a tile. tile, block: sizes of a tile of queries and of a block of keys.
    """
    start, end, prefix = _intervals(problem, offset, length, rows)
    first = jnp.minimum(jnp.arange(-(-rows // tile), dtype=jnp.int32) * tile, rows - tile)
    last = jnp.minimum(first + tile, problem.queries) - 1
    if problem.period < problem.queries:
        first, last = first * 0, last * 0 + problem.period - 1
    low, high, end_first, end_last = start[first], start[last], end[first], end[last]
    # Where the interval of every row begins inside the prefix, interval and prefix are one range.
    joined = high <= prefix
    ahead = -(-prefix // block)
    begin = jnp.maximum(low // block, ahead)
    stop = jnp.where(end_last > low, -(-end_last // block), 0)
    steps = ahead + jnp.maximum(stop - begin, 0)
    whole = jnp.where(joined, 0, jnp.maximum(-(-high // block), begin) - begin + ahead)
    whole_end = jnp.where(
        joined, jnp.maximum(end_first, prefix) // block, ahead + jnp.maximum(end_first // block - begin, 0)
    )
    whole = jnp.clip(whole, 0, steps)
    whole_end = jnp.clip(whole_end, whole, steps)
    return Ranges(jnp.stack([steps, steps * 0 + ahead, begin, whole, whole_end], axis=1), start, end, prefix)


def _intervals(problem: Problem, offset: Any, length: Any, rows: int) -> tuple[Any, Any, Any]:
    row = jnp.arange(rows, dtype=jnp.int32)
    valid = row < problem.queries
    length = jnp.minimum(jnp.asarray(length, jnp.int32), problem.slots)
    slot = jnp.asarray(offset, jnp.int32) + jnp.minimum(row, problem.queries - 1) % problem.period
    start, end = problem.rule.bounds(slot)
    start = slot * 0 if start is None else start
    prefix = jnp.minimum(jnp.int32(problem.rule.prefix), length)
    # Padding has an empty interval at the start of the last query's, so that starts never decrease.
    return start, jnp.where(valid, jnp.minimum(end, length), start * 0), prefix


def key_ranges(problem: Problem, ranges: Ranges, rows: int, tile: int, block: int) -> Any:
    """`Ranges.tiles` of the blocks of queries that see tiles of keys; the last tile is moved back to end with the keys.

    Args:
      problem, rows: as in `query_ranges`, which returned `ranges`.
      tile, block: sizes of a tile of keys, and of a block of queries.
    """
    slots, queries = problem.slots, problem.queries
    first = jnp.minimum(jnp.arange(-(-slots // tile), dtype=jnp.int32) * tile, slots - tile)
    last = first + tile - 1
    if problem.period < queries:  # queries of several heads in one row: any of them may see any key
        low, high = first * 0, first * 0 + queries
        whole = whole_end = first * 0
    else:
        start, end = ranges.start[:queries], ranges.end[:queries]
        # Neither bound decreases from row to row: the rows that see a key of the tile are consecutive.
        low = jnp.searchsorted(end, first, side="right").astype(jnp.int32)
        high = jnp.searchsorted(start, last, side="right").astype(jnp.int32)
        # Every key of the tile is visible to all rows from `low_all` to before `high_all`.
        low_all = jnp.searchsorted(end, last, side="right").astype(jnp.int32)
        high_all = jnp.searchsorted(start, first, side="right").astype(jnp.int32)
        starts_in_prefix = first < ranges.prefix
        low, high = jnp.where(starts_in_prefix, 0, low), jnp.where(starts_in_prefix, queries, high)
        high = jnp.maximum(high, low)
        # If the interval of a row begins inside the prefix, the row sees the prefix and the interval as one range.
        joined = jnp.searchsorted(start, jnp.maximum(first, ranges.prefix), side="right").astype(jnp.int32)
        high_all = jnp.where(starts_in_prefix, joined, high_all)
        in_prefix = last < ranges.prefix
        low_all, high_all = jnp.where(in_prefix, 0, low_all), jnp.where(in_prefix, queries, high_all)
        whole, whole_end = -(-low_all // block), high_all // block
    begin, stop = low // block, -(-high // block)
    steps = jnp.where(high > low, stop - begin, 0)
    whole = jnp.clip(whole - begin, 0, steps)
    whole_end = jnp.clip(whole_end - begin, whole, steps)
    return jnp.stack([steps, steps * 0, begin, whole, whole_end], axis=1)
