"""Propose and verify: the exact inverse from the estimate of a learned inverse."""

from __future__ import annotations

from starflow_jax.core.registries import SOLVERS
from starflow_jax.solvers.sliding import SlidingJacobi

# Tokens of one evaluation: whole sequences of small models. A window is never longer than the sequence.
WINDOW = 4096


@SOLVERS.register("verified", flags={"block": "window", "tolerance": "tolerance"})
def verified(window: int = WINDOW, tolerance: float = 1e-3) -> SlidingJacobi:
    """The solver that verifies the estimates of a learned inverse, and corrects them where they are wrong.

    Every iteration evaluates the flow on the current estimates and commits the tokens up to the first one that moved.
    The noise is fixed, so that the verification is deterministic, and the answer is that of the sequential solver to
    the tolerance, whatever the network proposes: a bad estimate costs iterations only.

    Args:
      window: tokens that are verified by one evaluation.
      tolerance: as `SlidingJacobi.tolerance`.
    """
    return SlidingJacobi(window=window, tolerance=tolerance, start="learned")
