"""Codes of the noise z, integers on a grid of spacing 2^-bits that are distributed as a standard normal variable.

An integer is split into a bucket of width 2^-5 and its place in the bucket. Buckets have a table of frequencies; places
are uniform, which costs (2^-5)^2 / 24 = 4e-5 nats. Values beyond 8 are coded by their distance, so that no value is
refused.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right

import numpy as np

from starflow_jax.compression.rans import PRECISION, AnsStack

_BUCKET_BITS = 5
_REACH = 8  # buckets cover [-8, 8)
_CHUNK = 16


class NoiseCode:
    """The code of integers whose value v stands for (v + 1/2) 2^-bits.

    Args:
      bits: the grid's spacing is 2^-bits; at least 0.
    """

    def __init__(self, bits: int):
        self.place_bits = max(0, bits - _BUCKET_BITS)
        self.half = _REACH << min(bits, _BUCKET_BITS)
        self.starts = bucket_starts(min(bits, _BUCKET_BITS))

    def push(self, stack: AnsStack, value: int) -> None:
        """Pushes one integer of any size."""
        bucket, half, starts = value >> self.place_bits, self.half, self.starts
        if self.place_bits:
            stack.push_bits(value & ((1 << self.place_bits) - 1), self.place_bits)
        if -half <= bucket < half:
            index = bucket + half + 1
        else:
            index = 0 if bucket < 0 else 2 * half + 1
            _push_distance(stack, -half - 1 - bucket if bucket < 0 else bucket - half)
        stack.push(starts[index], starts[index + 1] - starts[index])

    def pop(self, stack: AnsStack) -> int:
        """Pops one integer."""
        half, starts = self.half, self.starts
        index = bisect_right(starts, stack.slot()) - 1
        stack.drop(starts[index], starts[index + 1] - starts[index])
        if index == 0:
            bucket = -half - 1 - _pop_distance(stack)
        elif index == 2 * half + 1:
            bucket = half + _pop_distance(stack)
        else:
            bucket = index - half - 1
        return (bucket << self.place_bits) | (stack.pop_bits(self.place_bits) if self.place_bits else 0)


@functools.cache
def bucket_starts(bits: int) -> tuple[int, ...]:
    """Cumulative frequencies of the lower tail, of the buckets of width 2^-bits, and of the upper tail."""
    edges = np.arange(-_REACH << bits, (_REACH << bits) + 1) / (1 << bits)
    below = [0.5 * math.erfc(-edge / math.sqrt(2.0)) for edge in edges]
    # Every symbol has one position of its own, and the others are divided by probability.
    free = (1 << PRECISION) - (len(edges) + 1)
    return (0, *(round(p * free) + index + 1 for index, p in enumerate(below)), 1 << PRECISION)


def _push_distance(stack: AnsStack, distance: int) -> None:
    """Pushes an integer >= 0 of at most 255 words of 16 bits: its words, the lowest first, then their number."""
    count = 0
    while distance:
        stack.push_bits(distance & ((1 << _CHUNK) - 1), _CHUNK)
        distance >>= _CHUNK
        count += 1
    stack.push_bits(count, 8)


def _pop_distance(stack: AnsStack) -> int:
    distance = 0
    for _ in range(stack.pop_bits(8)):
        distance = (distance << _CHUNK) | stack.pop_bits(_CHUNK)
    return distance
