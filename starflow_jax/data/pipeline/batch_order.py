"""The examples of a batch: a pure function of the sources, the seed and the index of the batch.

It does not depend on the numbers of processes and workers, and the only state is the index of the next batch, so that a
run resumes exactly on any number of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import grain

from starflow_jax.core.config.checks import check

# A large stride, so that neighbouring seeds and neighbouring sources do not share an order.
_SEED_STRIDE = 1_000_003
# Grain computes each element of a permutation from its index, as unsigned integers of 32 bits.
MAX_EXAMPLES = 2**32


class Rows(NamedTuple):
    """The rows of a batch that this process reads.

    Attributes:
      component: index of the source; examples: (position in the infinite stream of that source, example) of each row.
    """

    component: int
    examples: tuple[tuple[int, int], ...]


def batch_plan(
    lengths: Sequence[int],
    weights: Sequence[float],
    batch_sizes: Sequence[int],
    seed: int,
    share: tuple[Sequence[int], int],
) -> Any:
    """An infinite `grain.MapDataset` whose element k is the `Rows` of batch k.

    Every source is a stream of permutations, one for each epoch, divided into batches. A batch may span two epochs, so
    that all have one size and no example is left out. Sources alternate in proportion to their weights. An element of a
    permutation is computed from its index, so that memory does not grow with the number of examples.

    Args:
      lengths, weights, batch_sizes: one for each source; batch sizes count the rows of all processes.
      seed: seed of the permutations.
      share: `(parts, count)`: this process reads `parts` of `count` equal parts of the rows.

    Raises:
      ValueError: a source has more than 2**32 examples.
    """
    check(
        max(lengths) <= MAX_EXAMPLES,
        f"a source of data must have at most {MAX_EXAMPLES} examples, got {max(lengths)}: a mixture joins several",
    )
    parts, count = share
    plans = []
    for component, (length, size) in enumerate(zip(lengths, batch_sizes, strict=True)):
        order = grain.MapDataset.range(length).shuffle(seed=(seed + component * _SEED_STRIDE) % 2**32).repeat()
        local_rows = [row for part in parts for row in range(part * size // count, (part + 1) * size // count)]
        rows = _ToRows(component, order, size, local_rows)
        plans.append(grain.MapDataset.range(1).repeat().map_with_index(rows))
    return plans[0] if len(plans) == 1 else grain.MapDataset.mix(plans, weights)


class _ToRows:
    """Maps the index of a batch of one source to its rows."""

    def __init__(self, component: int, order: Any, size: int, local_rows: Sequence[int]):
        self.component = component
        self.order = order
        self.size = size
        self.local_rows = local_rows

    def __call__(self, batch: int, _: int) -> Rows:
        positions = (batch * self.size + row for row in self.local_rows)
        return Rows(self.component, tuple((position, int(self.order[position])) for position in positions))
