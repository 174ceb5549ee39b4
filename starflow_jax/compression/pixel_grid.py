"""Pixels as integers on a grid that is finer than their levels, or that a pixel map has stretched.

Level v covers a range of positions. Which of them a pixel takes is popped from the stack ("bits back"), and pushed
again when the pixel is decoded. Without a pixel map every level covers 2^m positions, and the popped bits are the
noise of uniform dequantisation. A pixel map (`flows.pixel_map`) moves the boundaries of the levels; positions in a
level are then popped with the probabilities that the map gives them, which need not be uniform, and again nothing is
lost.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from starflow_jax.compression.modular_scale import Grid, integers
from starflow_jax.compression.rans import PRECISION, AnsStack
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.pixel_map_config import PixelMapConfig
from starflow_jax.flows.pixel_map import normal_cells

_MOST_POSITIONS = 1 << 16  # of a level


class PixelGrid:
    """The positions of the levels of a pixel.

    Args:
      levels: of a pixel, at least 2.
      bits: m; an ordinary level covers 2^m positions.
      pixel_map: of the flow, or None.

    Attributes:
      grid: the numbers that positions stand for, which block 0 reads (before a basis), with an origin of one channel.
      starts: the first position of every level, and the number of positions.

    Raises:
      ValueError: a pixel map that widens a level too much.
    """

    def __init__(self, levels: int, bits: int, pixel_map: PixelMapConfig | None = None):
        self._tables: dict[int, tuple[int, ...]] = {}
        if pixel_map is None:
            self.starts = [level << bits for level in range(levels + 1)]
            self.grid = Grid(2.0 / (levels << bits), np.asarray([-1.0]))
        elif pixel_map.kind == "logit":
            self._use_logit(pixel_map, bits)
        else:
            self._use_normal_cells(pixel_map, bits)

    def pop(self, stack: AnsStack, pixels: np.ndarray) -> np.ndarray:
        """Positions, int64, of integer pixels of any shape, the last first."""
        positions = []
        for level in reversed(pixels.reshape(-1).tolist()):
            start, end = self.starts[level], self.starts[level + 1]
            table = self._tables.get(level)
            if table is None:
                positions.append(start + stack.pop_uniform(end - start))
            else:
                place = bisect_right(table, stack.slot()) - 1
                stack.drop(table[place], table[place + 1] - table[place])
                positions.append(start + place)
        return integers(positions[::-1], pixels.shape)

    def push(self, stack: AnsStack, positions: np.ndarray) -> np.ndarray:
        """The inverse of `pop`: the pixels, int64.

        Raises:
          ValueError: a position that no level covers, which only damaged data lead to.
        """
        flat = positions.reshape(-1).tolist()
        if flat and not (min(flat) >= 0 and max(flat) < self.starts[-1]):
            raise ValueError("the coded stream leads to a pixel that has no level: it is damaged")
        pixels = []
        for position in flat:
            level = bisect_right(self.starts, position) - 1
            start, end = self.starts[level], self.starts[level + 1]
            table = self._tables.get(level)
            if table is None:
                stack.push_uniform(position - start, end - start)
            else:
                place = position - start
                stack.push(table[place], table[place + 1] - table[place])
            pixels.append(level)
        return integers(pixels, positions.shape)

    def digest_input(self) -> bytes:
        """The positions and frequencies as bytes, for a digest of all that both sides must agree on."""
        return repr((self.starts, sorted(self._tables.items()))).encode()

    def _use_normal_cells(self, config: PixelMapConfig, bits: int) -> None:
        cells, total = normal_cells(config)
        edges, shift, by_level = [], 0.0, {cell.level: cell for cell in cells}
        for level in range(config.levels + 1):
            edges.append(level + shift)
            if level in by_level:
                shift += by_level[level].width - 1.0
        self._set_starts(edges, 1.0 / (1 << bits))
        self.grid = Grid(2.0 / (total * (1 << bits)), np.asarray([-1.0]))
        for level, cell in by_level.items():

            def share(place: float, cell: object = cell) -> float:
                """The probability of the part of the cell below a share of its width."""
                normal = 0.5 * math.erfc(-cell.end * (2.0 * place - 1.0) / math.sqrt(2.0))  # type: ignore[attr-defined]
                return (normal - cell.tail) / config.kept  # type: ignore[attr-defined]

            self._tables[level] = _table(self.starts[level + 1] - self.starts[level], share)

    def _use_logit(self, config: PixelMapConfig, bits: int) -> None:
        inner = 1.0 - 2.0 * config.alpha
        units = [config.alpha + inner * level / config.levels for level in range(config.levels + 1)]
        edges = [math.log(unit) - math.log1p(-unit) for unit in units]
        spacing = min(b - a for a, b in pairwise(edges)) / (1 << bits)
        self._set_starts([edge - edges[0] for edge in edges], spacing)
        self.grid = Grid(spacing, np.asarray([edges[0]]))
        for level in range(config.levels):
            first, width = edges[level], edges[level + 1] - edges[level]

            def share(place: float, level: int = level, first: float = first, width: float = width) -> float:
                unit = 1.0 / (1.0 + math.exp(-(first + place * width)))
                return (unit - config.alpha) / inner * config.levels - level

            self._tables[level] = _table(self.starts[level + 1] - self.starts[level], share)

    def _set_starts(self, edges: list[float], spacing: float) -> None:
        self.starts = [0]
        for edge in edges[1:]:
            self.starts.append(max(round(edge / spacing), self.starts[-1] + 1))
        widest = max(b - a for a, b in pairwise(self.starts))
        check(
            widest <= _MOST_POSITIONS,
            f"flow.pixel_map must give a level at most {_MOST_POSITIONS} positions of the coder's grid, got {widest}",
        )


def _table(count: int, share: Callable[[float], float]) -> tuple[int, ...]:
    """Cumulative frequencies of `count` places, from the probability of what lies below a share of all places."""
    free = (1 << PRECISION) - count  # every place has one position of its own
    below = [min(max(share(place / count), 0.0), 1.0) for place in range(1, count)]
    return (0, *(round(p * free) + place + 1 for place, p in enumerate(below)), 1 << PRECISION)
