"""Solvers that invert a flow, one algorithm per file, all written against a block's prediction."""

from starflow_jax.solvers.automatic.block_solver_choice import auto
from starflow_jax.solvers.automatic.calibration import Calibration
from starflow_jax.solvers.base import Kind, Report, Solution, Solver, Stage, StageReport, State
from starflow_jax.solvers.gs_jacobi import calibrated_gs_jacobi, gs_jacobi
from starflow_jax.solvers.initial_estimate import AffineStart, Start
from starflow_jax.solvers.inverse import BlockReport, BlockTask, Inversion, inverse
from starflow_jax.solvers.inverse_arguments import SlidingWindow, check_frames
from starflow_jax.solvers.jacobi import Jacobi
from starflow_jax.solvers.named import named_solver
from starflow_jax.solvers.one_pass import OnePass, is_approximate
from starflow_jax.solvers.per_block import AnySolver, PerBlock, reads_estimates, solver_for_block
from starflow_jax.solvers.secant import Secant
from starflow_jax.solvers.selective import selective
from starflow_jax.solvers.sequential import Sequential
from starflow_jax.solvers.sliding import SlidingJacobi
from starflow_jax.solvers.span import Span
from starflow_jax.solvers.verified import verified

__all__ = [
    "AffineStart",
    "AnySolver",
    "BlockReport",
    "BlockTask",
    "Calibration",
    "Inversion",
    "Jacobi",
    "Kind",
    "OnePass",
    "PerBlock",
    "Report",
    "Secant",
    "Sequential",
    "SlidingJacobi",
    "SlidingWindow",
    "Solution",
    "Solver",
    "Span",
    "Stage",
    "StageReport",
    "Start",
    "State",
    "auto",
    "calibrated_gs_jacobi",
    "check_frames",
    "gs_jacobi",
    "inverse",
    "is_approximate",
    "named_solver",
    "reads_estimates",
    "selective",
    "solver_for_block",
    "verified",
]
