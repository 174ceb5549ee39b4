"""Which examples a batch holds: a pure function of the sources, the seed and the number of the batch.

Neither the number of processes nor that of workers is part of it, and nothing has to be remembered but how many batches
were taken: a run resumes anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import grain

# Far apart, so that neighbouring seeds and neighbouring sources do not share an order.
_NEXT_ORDER = 1_000_003


class Rows(NamedTuple):
    """What a batch of this process is made of.

    Attributes:
      component: number of the source; places: (place in the endless stream of that source, example) of each row.
    """

    component: int
    places: tuple[tuple[int, int], ...]


def batch_plan(
    lengths: Sequence[int],
    weights: Sequence[float],
    batch_sizes: Sequence[int],
    seed: int,
    share: tuple[Sequence[int], int],
) -> Any:
    """An endless `grain.MapDataset` whose element k is the Rows of batch k.

    Every source is a stream of permutations, one an epoch, cut into batches; a batch may span two epochs, so all have
    one size and no example is left out. Sources take turns in proportion to their weights.

    Args:
      lengths, weights, batch_sizes: of the sources; batch sizes count the rows of all processes.
      seed: of the permutations.
      share: `(parts, count)`: of `count` equal parts of the rows, these are this process's.
    """
    parts, count = share
    plans = []
    for number, (length, size) in enumerate(zip(lengths, batch_sizes, strict=True)):
        order = grain.MapDataset.range(length).shuffle(seed=(seed + number * _NEXT_ORDER) % 2**32).repeat()
        own = [row for part in parts for row in range(part * size // count, (part + 1) * size // count)]
        rows = _RowsOf(number, order, size, own)
        plans.append(grain.MapDataset.range(1).repeat().map_with_index(rows))
    return plans[0] if len(plans) == 1 else grain.MapDataset.mix(plans, weights)


class _RowsOf:
    """From the number of a source's batch to its rows."""

    def __init__(self, component: int, order: Any, size: int, own: Sequence[int]):
        self.component = component
        self.order = order
        self.size = size
        self.own = own

    def __call__(self, batch: int, _: int) -> Rows:
        places = (batch * self.size + row for row in self.own)
        return Rows(self.component, tuple((place, int(self.order[place])) for place in places))
