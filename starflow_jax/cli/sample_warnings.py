"""Warnings about samples, on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starflow_jax.sampling.sampling_report import SampleReport


def print_warnings(report: SampleReport, what: str, *, untrained_null: bool) -> None:
    """Warns of chunks that did not converge, of values that are not finite, and of an untrained prediction.

    Args:
      report: of the samples; what: the word for the samples, "images" or "videos".
      untrained_null: whether the prediction without a condition was used, although it was not trained.
    """
    if not report.converged:
        worst = max(report.unconverged, key=lambda chunk: chunk.residual)
        print(
            f"starflow: warning: {len(report.unconverged)} chunks did not converge (worst: relative change "
            f"{worst.residual:.2g} in block {worst.block} after {worst.iterations} iterations); "
            "raise --max-iterations or use --solver sequential",
            file=sys.stderr,
        )
    if report.non_finite:
        print(
            f"starflow: warning: {report.non_finite} of {report.images} {what} hold values that are not "
            "finite, shown as black or white",
            file=sys.stderr,
        )
    if untrained_null:
        print(
            "starflow: warning: the model was trained with label_drop 0, so its unconditional prediction, which "
            "guidance uses as well, is untrained",
            file=sys.stderr,
        )
