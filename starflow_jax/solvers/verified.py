"""Propose and verify: the exact inverse from the estimate of a learned inverse."""

from __future__ import annotations

from starflow_jax.core.registries import SOLVERS
from starflow_jax.solvers.sliding import SlidingJacobi

# Tokens of one evaluation: whole sequences of small models. A window is never longer than the sequence.
WINDOW = 4096


@SOLVERS.register("verified", flags={"block": "window", "tolerance": "tolerance"})
def verified(window: int = WINDOW, tolerance: float = 1e-5) -> SlidingJacobi:
    """The solver that verifies the estimates of a learned inverse, and corrects them where they are wrong.

    Every iteration evaluates the flow on the current estimates and commits the tokens up to the first one that moved.
    The noise is fixed, so that the verification is deterministic, and the answer is that of the sequential solver to
    the tolerance, whatever the network proposes: a bad estimate costs iterations only.

    Args:
      window: tokens that are verified by one evaluation.
      tolerance: as `SlidingJacobi.tolerance`. It bounds the last change of a token, which the flow amplifies: estimates
        that are nearly right settle at once, all with errors just below it, so that it has to be far below the error
        that is wanted.
    """
    return SlidingJacobi(window=window, tolerance=tolerance, start="learned")
