"""The solver of every block that a calibration predicts to be best."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from starflow_jax.core.choices import Objective
from starflow_jax.core.config.checks import check_choice, check_integer, check_real
from starflow_jax.core.registries import SOLVERS
from starflow_jax.solvers.automatic.calibration import BlockCalibration, Calibration, Trial
from starflow_jax.solvers.per_block import PerBlock
from starflow_jax.solvers.sequential import Sequential

# An iteration must promise this share of the sequential time at most: times of a busy machine are not exact.
_WORTH = 0.9


class Choice(NamedTuple):
    """What was chosen for a block.

    Attributes:
      block, tokens: which, and how long a sequence it inverts.
      trial: on the calibration samples.
      seconds: predicted for the batch; sequential_seconds: likewise, token by token.
    """

    block: int
    tokens: int
    trial: Trial
    seconds: float
    sequential_seconds: float


@SOLVERS.register("auto", flags={"objective": "objective", "target_error": "target_error"})
def auto(
    calibration: Calibration, *, batch: int = 1, objective: Objective = "time", target_error: float | None = None
) -> PerBlock:
    """The best solver of every block, with its window, start and tolerance.

    The allowed error of the final sample is shared out equally: a block may add target_error / blocks, divided by
    what the blocks after it make of an error. Only trials that kept this are considered; with "time" an iteration
    must also be predicted to beat the sequential solver, which is chosen otherwise.

    Args:
      calibration: of the flow.
      batch: samples that will be drawn together; times are interpolated between the measured batches.
      objective: least time on the machine that was calibrated, or least depth: evaluations that follow one
        another, which is what the latency of a large accelerator follows.
      target_error: relative error of the final sample; None means the calibration's.

    Raises:
      ValueError: an argument out of range.
    """
    chosen = {c.block: c for c in choices(calibration, batch=batch, objective=objective, target_error=target_error)}
    affine = {found.block: found.affine for found in calibration.blocks}
    return PerBlock(
        tuple(
            chosen[k].trial.method.build(chosen[k].trial.tolerance, affine[k], chosen[k].tokens)
            if k in chosen
            else Sequential()
            for k in range(calibration.num_blocks)
        )
    )


def choices(
    calibration: Calibration, *, batch: int = 1, objective: Objective = "time", target_error: float | None = None
) -> tuple[Choice, ...]:
    """What `auto` chooses for each block with layers, block 0 first; arguments and errors as there."""
    check_integer("batch", batch, minimum=1)
    check_choice("objective", objective, get_args(Objective))
    target_error = calibration.target_error if target_error is None else target_error
    check_real("target_error", target_error, minimum=0.0)
    return tuple(
        _choose(
            found,
            calibration.samples,
            batch,
            objective,
            target_error / len(calibration.blocks) / max(found.amplification, 1e-6),
        )
        for found in calibration.blocks
    )


def _choose(found: BlockCalibration, samples: int, batch: int, objective: Objective, allowed: float) -> Choice:
    sequential = _predicted(found, found.sequential, samples, batch)
    best = Choice(found.block, found.tokens, found.sequential, sequential, sequential)
    for trial in found.trials:
        if trial.error > allowed or trial.method.solver == "sequential":
            continue
        seconds = _predicted(found, trial, samples, batch)
        candidate = Choice(found.block, found.tokens, trial, seconds, sequential)
        if objective == "time":
            better = seconds < min(best.seconds, _WORTH * sequential)
        else:
            better = (trial.depth, seconds) < (best.trial.depth, best.seconds)
        best = candidate if better else best
    return best


def _predicted(found: BlockCalibration, trial: Trial, samples: int, batch: int) -> float:
    """Seconds of a trial's method for `batch` samples, from those for `samples` and how evaluations scale."""
    if batch == samples:
        return trial.seconds
    window = trial.method.window
    there, here = (_evaluation(found, window, rows) for rows in (samples, batch))
    return trial.seconds * here / there


def _evaluation(found: BlockCalibration, window: int, batch: int) -> float:
    """Seconds of an evaluation of `window` tokens of `batch` samples: bilinear between what was measured.

    Linear in the batch between and beyond the measured ones, never below the fastest; then linear in the window. Where
    one batch was measured, a larger one costs a window of tokens as many times more but a single token nothing, so that
    iteration is not chosen for a gain that nobody saw.
    """
    windows = sorted({cost.window for cost in found.costs if (cost.window == 1) == (window == 1)})
    if not windows:
        return 1.0
    times = []
    for size in windows:
        points = sorted((cost.batch, cost.seconds) for cost in found.costs if cost.window == size)
        batches, seconds = np.asarray(points).T
        if len(points) == 1:
            more = 1.0 if size == 1 else max(1.0, batch / batches[0])
            times.append(float(seconds[0] * more))
            continue
        slope, level = np.polyfit(batches, seconds, 1)
        times.append(max(float(level + slope * batch), float(seconds.min()), 1e-9))
    return float(np.interp(window, windows, times))
