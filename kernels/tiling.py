"""How kernels cut a sequence into blocks."""

from __future__ import annotations

import math

# A register's lanes, and the longest block whose parts fit a chip's vector memory, backward pass included.
_LANES, _LONGEST = 128, 1024


def blocks(count: int) -> tuple[int, int]:
    """The length of a block and of the padded sequence: little padding, and blocks that are worth their start."""
    lanes = math.ceil(count / _LANES)

    def padded(size: int) -> int:
        return math.ceil(lanes / size) * size

    block = min(range(1, min(lanes, _LONGEST // _LANES) + 1), key=lambda size: padded(size) * (1 + 1 / size))
    return block * _LANES, padded(block) * _LANES
