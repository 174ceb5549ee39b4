"""How a drawing went: what it cost, and what did not settle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from starflow_jax.solvers import BlockReport


@dataclasses.dataclass(frozen=True)
class UnconvergedChunk:
    """A stretch of tokens that an iteration left unsolved.

    Attributes:
      batch: of the call; block: of the flow; start, length: its tokens in that block's order.
      iterations: network evaluations spent on it; residual: the last relative mean-square change, of the worst sample.
    """

    batch: int
    block: int
    start: int
    length: int
    iterations: int
    residual: float


@dataclasses.dataclass(frozen=True)
class SampleReport:
    """How a drawing of pictures or videos went.

    Attributes:
      images: drawn (videos where there are videos); batches: calls of the compiled program, each of `batch_size` rows.
      evaluations: network evaluations of a whole batch (a guided pair counts once), over all batches.
      iterations: evaluations a block, in order of inversion (deep block first), over all batches.
      seconds: drawing; compile_seconds: building the program before that, about 0 where it was there already.
      unconverged: chunks whose iteration ended before it settled; empty for the sequential solver.
      non_finite: images with a value that is NaN or infinite (shown as black or white).
    """

    images: int
    batches: int
    batch_size: int
    evaluations: int
    iterations: tuple[int, ...]
    seconds: float
    compile_seconds: float
    unconverged: tuple[UnconvergedChunk, ...]
    non_finite: int

    @property
    def converged(self) -> bool:
        """Whether every chunk of every block of every batch converged."""
        return not self.unconverged


def report_on(
    outcomes: Sequence[Sequence[BlockReport]],
    *,
    count: int,
    batch_size: int,
    seconds: float,
    compile_seconds: float,
    non_finite: int,
) -> SampleReport:
    """The report of a drawing from what the solver reported of every block (inner) of every batch (outer).

    The reports hold arrays on the host; the other arguments are fields of `SampleReport`, `count` its `images`.
    """
    totals = [[int(block.evaluations.sum()) for block in batch] for batch in outcomes]
    return SampleReport(
        images=count,
        batches=len(outcomes),
        batch_size=batch_size,
        evaluations=sum(map(sum, totals)),
        iterations=tuple(map(sum, zip(*totals, strict=True))),
        seconds=seconds,
        compile_seconds=compile_seconds,
        unconverged=tuple(_unconverged(outcomes)),
        non_finite=non_finite,
    )


def _unconverged(outcomes: Sequence[Sequence[BlockReport]]) -> list[UnconvergedChunk]:
    found = []
    for batch, reports in enumerate(outcomes):
        for report in reports:
            for chunk in np.flatnonzero(~np.asarray(report.converged).all(axis=1)):
                values = (report.starts, report.lengths, report.evaluations)
                start, length, iterations = (int(value[chunk]) for value in values)
                residual = float(report.residual[chunk].max())
                found.append(UnconvergedChunk(batch, report.block, start, length, iterations, residual))
    return found
