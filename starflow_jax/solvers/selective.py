"""Selective Jacobi decoding: the deep block token by token, the others by Jacobi iteration (arXiv 2505.24791)."""

from __future__ import annotations

from typing import Any

from starflow_jax.core.config.checks import check_integer
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.registries import SOLVERS
from starflow_jax.solvers.initial_estimate import Start
from starflow_jax.solvers.jacobi import Jacobi
from starflow_jax.solvers.per_block import PerBlock
from starflow_jax.solvers.sequential import Sequential


def selective(
    num_blocks: int,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 32,
    start: Start = "noise",
    per_sample: bool = False,
) -> PerBlock:
    """Sequential for the deep block, whole-sequence Jacobi for the others.

    The paper reports that the block inverted first has little redundancy between tokens, so that parallel iteration
    gains nothing there, while the others converge in a few iterations. Its stopping rule is the largest absolute
    change; here it is `Jacobi.tolerance`.

    Args:
      num_blocks: number of blocks of the flow.
      tolerance, max_iterations, start, per_sample: as in `Jacobi`.
    """
    check_integer("selective.num_blocks", num_blocks, minimum=1)
    iterated = Jacobi.whole(tolerance=tolerance, max_iterations=max_iterations, start=start, per_sample=per_sample)
    return PerBlock((iterated,) * (num_blocks - 1) + (Sequential(),))


@SOLVERS.register("selective", flags={"tolerance": "tolerance", "max_iterations": "max_iterations"})
def selective_solver(flow: FlowConfig, **options: Any) -> PerBlock:
    """`selective` for the blocks of a flow; options as there."""
    return selective(flow.num_blocks, **options)
