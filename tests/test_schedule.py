"""A schedule visits the blocks with visible keys, no others, and says which of them need no mask."""

import itertools

import jax
import numpy as np
import pytest

from starflow_jax.kernels.attention import Causal, CausalFrames, FrameWindow, Full
from starflow_jax.kernels.attention.schedule import EMPTY, FIRST, LAST, PARTIAL, Problem, schedule

RULES = [Causal(), Causal(5), Full(), CausalFrames(3, 4, 0), CausalFrames(0, 5, 1), FrameWindow(2, 3, 2, 1),
         FrameWindow(0, 4, 1, None), FrameWindow(3, 4, 3, 1)]  # fmt: skip
CASES = [  # queries, slots, offset, length, period
    (17, 17, 0, 17, 17),
    (5, 23, 9, 20, 5),
    (1, 23, 22, 23, 1),
    (12, 23, 7, 23, 4),
    (9, 9, 0, 0, 9),
]


def expected(rule, queries, slots, offset, length, period, block_q, block_k):
    """For every pair of blocks with visible keys, whether it needs a mask."""
    rows = offset + np.arange(queries) % period
    start, end = rule.bounds(rows[:, None], np)
    keys = np.arange(slots)[None]
    mask = ((keys >= (0 if start is None else start)) & (keys < end) | (keys < rule.prefix)) & (keys < length)
    needs_mask = {}
    for i, j in itertools.product(range(-(-queries // block_q)), range(-(-slots // block_k))):
        tile = mask[i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
        if tile.any():
            needs_mask[i, j] = not (tile.all() and tile.shape == (block_q, block_k))
    return needs_mask


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_schedule_visits_the_blocks_with_visible_keys(rule, case):
    queries, slots, offset, length, period = case
    problem = Problem(rule, queries, slots, period)
    static = schedule(problem, offset, length, 4, 3)
    visible = expected(rule, *case, 4, 3)
    visited = {(i, j): flags for i, j, flags in static.steps.T.tolist() if not flags & EMPTY}
    assert len(visited) == sum(not f & EMPTY for f in static.steps[2])
    assert set(visited) >= set(visible)
    if period == queries:
        # Otherwise a block holds queries of several heads, or frames with gaps, which the schedule treats as one range.
        assert all(visible[pair] <= bool(visited[pair] & PARTIAL) for pair in visible)
        assert set(visited) == set(visible)
    rows = [static.steps[2][static.steps[0] == i] for i in range(-(-queries // 4))]
    for flags in rows:  # every block of queries has one first and one last step, also without visible keys
        assert flags.size and (flags & FIRST > 0).tolist() == [True] + [False] * (flags.size - 1)
        assert (flags & LAST > 0).tolist() == [False] * (flags.size - 1) + [True]


@pytest.mark.parametrize("rule", [Causal(5), FrameWindow(3, 4, 3, 1)], ids=str)
def test_a_traced_schedule_is_the_same(rule):
    problem = Problem(rule, 5, 23, 5)
    traced = jax.jit(lambda offset, length: tuple(vars(schedule(problem, offset, length, 4, 3)).values()))
    for offset, length in [(0, 5), (9, 20), (18, 23), (0, 0)]:
        static = schedule(problem, offset, length, 4, 3)
        steps, count = traced(offset, length)
        np.testing.assert_array_equal(steps[:, : int(count)], static.steps)


def test_full_blocks_are_not_masked():
    steps = schedule(Problem(Causal(), 16, 16, 16), 0, 16, 4, 4).steps
    assert steps.shape == (3, 10)
    assert [bool(f & PARTIAL) for f in steps[2]] == [i == j for i, j in steps[:2].T]
