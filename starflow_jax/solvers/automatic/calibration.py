"""Measurements of solvers on the blocks of a flow, as a dataclass that is stored as JSON.

`solver_measurement` makes them, and `block_solver_choice` chooses solvers from them.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from starflow_jax.core.config.build import from_json, to_json
from starflow_jax.core.config.checks import check, check_choice, check_integer, check_real
from starflow_jax.solvers.base import Solver
from starflow_jax.solvers.initial_estimate import AffineStart, Start
from starflow_jax.solvers.jacobi import Jacobi
from starflow_jax.solvers.secant import Secant
from starflow_jax.solvers.sequential import Sequential
from starflow_jax.solvers.sliding import SlidingJacobi

SolverName = Literal["sequential", "jacobi", "sliding", "secant"]
StartName = Literal["noise", "zero", "affine", "frame", "learned"]
CANDIDATES: tuple[SolverName, ...] = get_args(SolverName)
STARTS: tuple[StartName, ...] = get_args(StartName)


@dataclasses.dataclass(frozen=True)
class Method:
    """A solver without its tolerance.

    Attributes:
      solver: one of `CANDIDATES`.
      window: tokens of one network evaluation (1 for "sequential").
      start: initial estimate ("affine": from the block's channel statistics; "learned": of a learned inverse, whose
        pass counts as an evaluation).
      lags, pool: of "secant" (see `Secant`); empty and 1 for the others.
    """

    solver: SolverName
    window: int
    start: StartName = "noise"
    lags: tuple[int, ...] = ()
    pool: int = 1

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, CANDIDATES)
        check_integer("window", self.window, minimum=1)
        check_choice("start", self.start, STARTS)
        check(
            bool(self.lags) == (self.solver == "secant"),
            f"lags require solver 'secant', got solver={self.solver!r} and lags={list(self.lags)}",
        )
        check_integer("pool", self.pool, minimum=1)
        for lag in self.lags:
            check_integer("lags", lag, minimum=1)

    def build(self, tolerance: float, affine: AffineStart | None, tokens: int) -> Solver:
        """The solver for a sequence of `tokens` tokens; affine: the start that "affine" stands for."""
        if self.solver == "sequential":
            return Sequential()
        start: Start
        if self.start == "affine":
            assert affine is not None
            start = affine
        else:
            start = self.start
        if self.solver == "sliding":
            return SlidingJacobi(self.window, tolerance, start)
        # As many iterations as tokens always suffice; a sample that has converged is not updated.
        block = None if self.window >= tokens else self.window
        max_iterations = min(self.window, tokens)
        if self.solver == "secant":
            return Secant(
                block=block,
                tolerance=tolerance,
                max_iterations=max_iterations,
                start=start,
                lags=self.lags,
                pool=self.pool,
            )
        return Jacobi(
            block=block, growth=1, tolerance=tolerance, max_iterations=max_iterations, start=start, per_sample=True
        )

    @property
    def label(self) -> str:
        """A short description for tables."""
        return self.solver if self.solver == "sequential" else f"{self.solver} {self.window} from {self.start}"

    @property
    def squares(self) -> bool:
        """Whether the tolerance bounds a mean square, hence the square of the error rather than the error."""
        return self.solver in ("jacobi", "secant")


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of a method on one block, with all calibration samples in one batch.

    Attributes:
      method, tolerance: the solver.
      depth: sequential network evaluations.
      error: relative error (root mean square) of the block's output, that of the worst sample.
      seconds: time for the whole block without compilation.
    """

    method: Method
    tolerance: float
    depth: int
    error: float
    seconds: float

    def __post_init__(self) -> None:
        check_integer("depth", self.depth, minimum=0)
        for name in ("tolerance", "error", "seconds"):
            check_real(name, getattr(self, name), minimum=0.0)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Measured time of one network evaluation.

    Attributes:
      window: tokens of the evaluation; 1 for the sequential solver.
      batch: number of samples.
      seconds: time, including the solver's own operations.
    """

    window: int
    batch: int
    seconds: float

    def __post_init__(self) -> None:
        check_integer("window", self.window, minimum=1)
        check_integer("batch", self.batch, minimum=1)
        check_real("seconds", self.seconds, minimum=0.0)


@dataclasses.dataclass(frozen=True)
class StartMeasure:
    """IGM of one start (arXiv 2505.12849): the norm of the mean error after one Jacobi iteration; smaller is better."""

    start: StartName
    igm: float

    def __post_init__(self) -> None:
        check_choice("start", self.start, STARTS)
        check_real("igm", self.igm, minimum=0.0)


@dataclasses.dataclass(frozen=True)
class BlockCalibration:
    """Measurements of one block.

    Attributes:
      block: index of the block, 0 nearest the data.
      tokens: length of its sequence (one frame, where the block runs inside frames).
      crm: convergence ranking (arXiv 2505.12849); the larger, the slower the convergence.
      starts: IGM of the initial estimates.
      mean, scale: per channel of a token, the least-squares fit x = mean + scale z: the affine start.
      amplification: relative error of the final sample divided by the relative error of this block's output.
      trials: the methods that were tried.
      costs: times of network evaluations.
    """

    block: int
    tokens: int
    crm: float
    starts: tuple[StartMeasure, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    amplification: float
    trials: tuple[Trial, ...]
    costs: tuple[Cost, ...]

    def __post_init__(self) -> None:
        check_integer("block", self.block, minimum=0)
        check_integer("tokens", self.tokens, minimum=1)
        check_real("crm", self.crm, minimum=0.0)
        check_real("amplification", self.amplification, minimum=0.0)
        AffineStart(self.mean, self.scale)  # raises ValueError where they do not fit
        check(bool(self.trials), "trials must contain at least one trial, got none")
        sequential = [trial for trial in self.trials if trial.method.solver == "sequential"]
        check(len(sequential) == 1, f"trials must contain one trial of the sequential solver, got {len(sequential)}")

    @property
    def affine(self) -> AffineStart:
        """The affine start."""
        return AffineStart(self.mean, self.scale)

    @property
    def sequential(self) -> Trial:
        """The trial of the sequential solver."""
        return next(trial for trial in self.trials if trial.method.solver == "sequential")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Measurements of all blocks of a flow.

    Attributes:
      step: training step of the checkpoint.
      device: kind of the device that the times were measured on.
      shape: of one sample, ([T,] H, W, C).
      samples: number of samples that were used.
      guidance: weight of classifier-free guidance, 0 for none.
      target_error: relative error of the final sample that the trials aimed at.
      num_blocks: number of blocks of the flow.
      blocks: measurements of the blocks with layers, block 0 first.
      inverse_step: training step of the learned inverse that the start "learned" was measured with, None for none.
    """

    step: int
    device: str
    shape: tuple[int, ...]
    samples: int
    guidance: float
    target_error: float
    num_blocks: int
    blocks: tuple[BlockCalibration, ...]
    inverse_step: int | None = None

    def __post_init__(self) -> None:
        check_integer("step", self.step, minimum=0)
        if self.inverse_step is not None:
            check_integer("inverse_step", self.inverse_step, minimum=0)
        check_integer("samples", self.samples, minimum=1)
        check_integer("num_blocks", self.num_blocks, minimum=1)
        check_real("guidance", self.guidance, minimum=0.0)
        check_real("target_error", self.target_error, minimum=0.0)
        check(len(self.shape) in (3, 4), f"shape must be [T,] H, W, C, got {list(self.shape)}")
        for size in self.shape:
            check_integer("shape", size, minimum=1)
        indices = [block.block for block in self.blocks]
        check(
            indices == sorted(set(indices)) and bool(indices) and indices[-1] < self.num_blocks,
            f"blocks must be different indices below num_blocks={self.num_blocks}, in order, got {indices}",
        )

    def ranked(self) -> tuple[int, ...]:
        """Block indices by CRM, the slowest to converge first."""
        return tuple(block.block for block in sorted(self.blocks, key=lambda block: -block.crm))

    def to_json(self) -> str:
        """The calibration as JSON."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Reads the result of `to_json`; ValueError for anything else."""
        return from_json(text, cls)
