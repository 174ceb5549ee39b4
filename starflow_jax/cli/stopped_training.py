"""How a command reports a training, or chains, that a signal has stopped."""

from __future__ import annotations

import signal
import sys

from starflow_jax.cli.errors import INTERRUPTED


def report_stop(stopped_by: int, step: int, steps: int, unit: str = "step") -> int:
    """Prints at which of `steps` updates, or other units, the signal `stopped_by` came; returns the exit code.

    A scheduler's SIGTERM is no failure: its exit code is 0.
    """
    by = signal.Signals(stopped_by)
    print(
        f"starflow: stopped by {by.name} at {unit} {step} of {steps}; a checkpoint is saved and the same command "
        "resumes from it",
        file=sys.stderr,
    )
    return 0 if by == signal.SIGTERM else INTERRUPTED
