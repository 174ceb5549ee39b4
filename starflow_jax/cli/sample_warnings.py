"""Warnings about samples, on standard error, and the refusal to write samples that are not finite."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from starflow_jax.cli.errors import CommandError

if TYPE_CHECKING:
    import numpy as np

    from starflow_jax.sampling.sampling_report import SampleReport


WRITE_NON_FINITE = "also write samples with values that are not finite, shown as black or white (default: refused)"


def check_finite(values: np.ndarray, what: str, write_anyway: bool) -> None:
    """Raises CommandError for samples that are not finite, which would be written as black or white.

    Args:
      values: floating point [n, ...], the samples that are written; what: the word for them, "images" or "videos".
      write_anyway: whether they are written all the same.
    """
    import numpy as np  # imported here so that help texts are printed quickly

    bad = int(np.count_nonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))))
    if bad and not write_anyway:
        raise CommandError(
            f"{bad} of {len(values)} {what} contain values that are not finite, so nothing is written; lower "
            "--temperature or --guidance, or give --write-non-finite to see these values as black or white"
        )


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
