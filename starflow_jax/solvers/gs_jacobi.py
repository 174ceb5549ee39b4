"""GS-Jacobi: Gauss-Seidel over modules of tokens, Jacobi inside each (arXiv 2505.12849)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from starflow_jax.core.config.checks import check, check_integer
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.registries import SOLVERS
from starflow_jax.solvers.automatic.calibration import Calibration
from starflow_jax.solvers.initial_estimate import Start
from starflow_jax.solvers.jacobi import Jacobi
from starflow_jax.solvers.per_block import PerBlock


def gs_jacobi(
    num_blocks: int,
    tough: Collection[int],
    *,
    modules: int = 8,
    tough_iterations: int = 32,
    other_iterations: int = 10,
    tolerance: float = 1e-8,
    starts: Mapping[int, Start] | None = None,
    per_sample: bool = False,
) -> PerBlock:
    """The strategy [tough - modules - tough_iterations - other_iterations] of the paper.

    The sequence of a tough block (a calibration ranks blocks) is cut into equal modules, which are solved one after
    another by Jacobi iteration, each given the solution of those before it. All other blocks are iterated as a whole.
    There are two differences from the paper: the stopping rule is the relative `Jacobi.tolerance` instead of the mean
    absolute change, and estimates are not clamped.

    Args:
      num_blocks: number of blocks of the flow.
      tough: indices of the tough blocks, block 0 nearest the data.
      modules: modules per tough block; the last is shorter where the number of tokens is not a multiple.
      tough_iterations: maximum number of iterations per module.
      other_iterations: maximum number of iterations of every other block.
      tolerance: as `Jacobi.tolerance`.
      starts: initial estimate by block; "noise" for the others.
      per_sample: as `Jacobi.per_sample`.

    Raises:
      ValueError: a block does not exist, or a number is out of range.
    """
    check_integer("gs_jacobi.num_blocks", num_blocks, minimum=1)
    starts = {} if starts is None else starts
    for name, blocks in (("tough", tough), ("starts", starts)):
        for block in blocks:
            check(block in range(num_blocks), f"gs_jacobi.{name} must name blocks 0 to {num_blocks - 1}, got {block!r}")
    return PerBlock(
        tuple(
            Jacobi(
                block=None,
                modules=modules if block in tough else 1,
                tolerance=tolerance,
                max_iterations=tough_iterations if block in tough else other_iterations,
                start=starts.get(block, "noise"),
                per_sample=per_sample,
            )
            for block in range(num_blocks)
        )
    )


def calibrated_gs_jacobi(calibration: Calibration, *, tough: int = 1, **options: Any) -> PerBlock:
    """`gs_jacobi` set up by the paper's two measures.

    The blocks with the largest convergence ranking (CRM) are the tough ones; every block starts from the initial guess
    with the smallest initial guess metric (IGM).

    Args:
      calibration: of the flow.
      tough: number of tough blocks.
      **options: as in `gs_jacobi`.

    Raises:
      ValueError: a number is out of range.
    """
    check_integer("gs_jacobi.tough", tough, minimum=0)
    ranked = sorted(calibration.blocks, key=lambda block: block.crm, reverse=True)
    starts: dict[int, Start] = {}
    for block in calibration.blocks:
        best = min(block.starts, key=lambda measure: measure.igm).start
        starts[block.block] = block.affine if best == "affine" else best
    return gs_jacobi(calibration.num_blocks, [block.block for block in ranked[:tough]], starts=starts, **options)


@SOLVERS.register(
    "gs-jacobi",
    flags={"modules": "modules", "tolerance": "tolerance", "max_iterations": "tough_iterations"},
)
def gs_jacobi_solver(flow: FlowConfig, calibration: Calibration | None = None, **options: Any) -> PerBlock:
    """`calibrated_gs_jacobi`, or without a calibration `gs_jacobi` with the deep block as the tough one."""
    if calibration is not None:
        return calibrated_gs_jacobi(calibration, **options)
    return gs_jacobi(flow.num_blocks, (flow.num_blocks - 1,), **options)
