"""Cost and convergence of sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from starflow_jax.solvers import BlockReport


@dataclasses.dataclass(frozen=True)
class UnconvergedChunk:
    """A chunk of tokens whose iteration ended before it converged.

    Attributes:
      batch: index of the batch; block: index of the block; start, length: its tokens in the order of that block.
      iterations: network evaluations spent on it; residual: the last relative mean-square change of the worst sample.
    """

    batch: int
    block: int
    start: int
    length: int
    iterations: int
    residual: float


@dataclasses.dataclass(frozen=True)
class SampleReport:
    """Cost and convergence of sampling images or videos.

    Attributes:
      images: number of images or videos; batches: calls of the compiled program, each of `batch_size` rows.
      evaluations: network evaluations of a whole batch (a guided pair counts once), summed over batches.
      iterations: evaluations of each block in order of inversion (deep block first), summed over batches.
      seconds: time of sampling; compile_seconds: time of compiling before it, about 0 for a cached program.
      unconverged: chunks that did not converge; empty for the sequential solver.
      non_finite: images with NaN or infinite values, which become black or white.
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
    """The report of a call from the solver's reports of every batch (outer) and block (inner), with arrays on the host.

    The other arguments are fields of `SampleReport`; `count` is its `images`.
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
    chunks = []
    for batch, reports in enumerate(outcomes):
        for report in reports:
            for chunk in np.flatnonzero(~np.asarray(report.converged).all(axis=1)):
                values = (report.starts, report.lengths, report.evaluations)
                start, length, iterations = (int(value[chunk]) for value in values)
                residual = float(report.residual[chunk].max())
                chunks.append(UnconvergedChunk(batch, report.block, start, length, iterations, residual))
    return chunks
