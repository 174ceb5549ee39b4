"""Chooses the solver of every block that is best according to a calibration."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from starflow_jax.core.choices import Objective
from starflow_jax.core.config.checks import check_choice, check_integer, check_real
from starflow_jax.core.registries import SOLVERS
from starflow_jax.solvers.automatic.calibration import BlockCalibration, Calibration, Trial
from starflow_jax.solvers.per_block import PerBlock
from starflow_jax.solvers.sequential import Sequential

# An iterative solver must be predicted to take at most this share of the sequential time: times are noisy.
_MAX_SHARE = 0.9


class Choice(NamedTuple):
    """The choice for one block.

    Attributes:
      block, tokens: index of the block and length of its sequence.
      trial: the chosen trial of the calibration.
      seconds: predicted time for the batch.
      sequential_seconds: predicted time of the sequential solver.
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

    The allowed error of the final sample is divided equally: a block may add target_error / blocks, divided by the
    block's amplification. Only trials within this error are considered; with "time" an iterative solver must also be
    predicted to be faster than the sequential one, which is chosen otherwise.

    Args:
      calibration: measurements of the flow.
      batch: samples per batch; times are interpolated between the measured batches.
      objective: "time", least time on the calibrated device, or "depth", fewest sequential evaluations, which
        determine the latency on a large accelerator.
      target_error: relative error of the final sample; None means the calibration's.

    Raises:
      ValueError: an argument is out of range.
    """
    chosen = {c.block: c for c in choices(calibration, batch=batch, objective=objective, target_error=target_error)}
    affine = {block.block: block.affine for block in calibration.blocks}
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
    """The choices of `auto` for the blocks with layers, block 0 first; arguments and errors as there."""
    check_integer("batch", batch, minimum=1)
    check_choice("objective", objective, get_args(Objective))
    target_error = calibration.target_error if target_error is None else target_error
    check_real("target_error", target_error, minimum=0.0)
    return tuple(
        _choose(
            block,
            calibration.samples,
            batch,
            objective,
            target_error / len(calibration.blocks) / max(block.amplification, 1e-6),
        )
        for block in calibration.blocks
    )


def _choose(block: BlockCalibration, samples: int, batch: int, objective: Objective, allowed: float) -> Choice:
    """The best trial of a block whose error is at most `allowed`."""
    sequential = _predicted_seconds(block, block.sequential, samples, batch)
    best = Choice(block.block, block.tokens, block.sequential, sequential, sequential)
    for trial in block.trials:
        if trial.error > allowed or trial.method.solver == "sequential":
            continue
        seconds = _predicted_seconds(block, trial, samples, batch)
        candidate = Choice(block.block, block.tokens, trial, seconds, sequential)
        if objective == "time":
            better = seconds < min(best.seconds, _MAX_SHARE * sequential)
        else:
            better = (trial.depth, seconds) < (best.trial.depth, best.seconds)
        best = candidate if better else best
    return best


def _predicted_seconds(block: BlockCalibration, trial: Trial, samples: int, batch: int) -> float:
    """The time of a trial's method for `batch` samples, scaled from the time measured for `samples`."""
    if batch == samples:
        return trial.seconds
    measured, predicted = (_evaluation_seconds(block, trial.method.window, rows) for rows in (samples, batch))
    return trial.seconds * predicted / measured


def _evaluation_seconds(block: BlockCalibration, window: int, batch: int) -> float:
    """The time of an evaluation of `window` tokens of `batch` samples, bilinear in the measured costs.

    Linear in the batch, extrapolated too, but never below the fastest; then linear in the window. Where only one batch
    was measured, the time of a window grows in proportion to the batch and that of a single token not at all, so that
    no iterative solver is chosen for a gain that was not measured.
    """
    windows = sorted({cost.window for cost in block.costs if (cost.window == 1) == (window == 1)})
    if not windows:
        return 1.0
    times = []
    for size in windows:
        points = sorted((cost.batch, cost.seconds) for cost in block.costs if cost.window == size)
        batches, seconds = np.asarray(points).T
        if len(points) == 1:
            growth = 1.0 if size == 1 else max(1.0, batch / batches[0])
            times.append(float(seconds[0] * growth))
            continue
        slope, level = np.polyfit(batches, seconds, 1)
        times.append(max(float(level + slope * batch), float(seconds.min()), 1e-9))
    return float(np.interp(window, windows, times))
