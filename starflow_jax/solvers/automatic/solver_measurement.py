"""Measures solvers on each block of a flow, on samples of its training data.

The forward pass gives the input and the output of every block, so that every trial is compared with the exact
solution. Solvers are tried, with their network evaluations, error and time; the two measures of GS-Jacobi
(arXiv 2505.12849) are computed as well.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Shaped

from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.flows.guidance import AnyGuidance
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.order import AnyArray, Grid
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.solvers.automatic.calibration import (
    BlockCalibration,
    Calibration,
    Cost,
    Method,
    StartMeasure,
    StartName,
    Trial,
)
from starflow_jax.solvers.automatic.measured_block import HostArray, MeasuredBlock, Outcome, relative_error
from starflow_jax.solvers.base import Solver
from starflow_jax.solvers.initial_estimate import AffineStart

# A tolerance that a single iteration meets, and one near the resolution of float32.
_ONE_ITERATION, _EXACT = 1e30, 1e-11
# Windows of 1/share of the sequence are tried, none below _SHORTEST tokens.
_SHARES, _SHORTEST = (4, 16), 8
# Timed runs of each trial, of which the fastest counts.
_ROUNDS = 3


@functools.partial(jax.jit, static_argnums=0)
def _forward(
    config: FlowConfig, params: Params, x: jax.Array, cond: jax.Array | None, guidance: AnyGuidance | None
) -> tuple[jax.Array, ...]:
    """The input of every block, then the noise (`FlowOutput.tokens`)."""
    return merge(abstract(config)[0], params).forward(x, cond, guidance=guidance).tokens


@functools.partial(jax.jit, static_argnums=0)
def _estimates(
    config: FlowConfig,
    learned: LearnedParams,
    states: tuple[jax.Array, ...],
    cond: jax.Array | None,
    weight: float | Float[Array, ""],
) -> tuple[jax.Array, ...]:
    """The estimate of the input of every block from the block's exact output."""
    return learned.module(config)(states[-1], cond, weight, teacher=states).states


def calibrate(
    config: FlowConfig,
    params: Params,
    x: Float[AnyArray, "B *size"],
    cond: Shaped[AnyArray, "B *rest"] | None = None,
    *,
    guidance: AnyGuidance | None = None,
    weight: float = 0.0,
    target_error: float = 1e-3,
    step: int = 0,
    learned: LearnedParams | None = None,
    inverse_step: int | None = None,
    shares: tuple[int, ...] = _SHARES,
    rounds: int = _ROUNDS,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Calibrates the solvers of a flow.

    Args:
      config, params: the flow.
      x: samples, [B, H, W, C] or [B, T, H, W, C], with the noise that the flow is trained on.
      cond: their conditions, as in `Flow.forward`.
      guidance: the guidance that the flow will be sampled with.
      weight: weight of the guidance, recorded in the result.
      target_error: relative error of the final sample that trials aim at.
      step: training step of the parameters, recorded in the result.
      learned: the learned inverse of the flow, whose estimates are then tried as well; None for none.
      inverse_step: its training step, recorded in the result.
      shares: windows of 1/share of a block's sequence are tried in addition to the whole sequence.
      rounds: timed runs of each trial, of which the fastest counts.
      progress: called with a message before each block.

    Raises:
      ValueError: samples or conditions do not fit the flow, a number is out of range, or the flow has no layers.
    """
    check_real("target_error", target_error, minimum=1e-6)
    check_integer("rounds", rounds, minimum=1)
    flow = merge(abstract(config)[0], params)
    samples, grid = x.shape[0], Grid.from_shape(config, x.shape)
    states = jax.device_get(_forward(config, params, x, cond, guidance))
    estimates, pass_seconds = None, 0.0
    if learned is not None:
        estimates = jax.device_get(_estimates(config, learned, states, cond, weight))  # compiles
        for _ in range(rounds):
            begin = time.perf_counter()
            jax.block_until_ready(_estimates(config, learned, states, cond, weight))
            seconds = time.perf_counter() - begin
            pass_seconds = min(pass_seconds or seconds, seconds)
    cond = jax.device_get(cond)

    def block_of(index: int) -> MeasuredBlock:
        x, z = (flow.to_block(index, states[i], grid) for i in (index, index + 1))
        return MeasuredBlock(config, params, flow, index, grid, cond, guidance, x, z, samples)

    blocks = [block_of(index) for index in range(config.num_blocks) if not flow.blocks[index].is_identity]
    check(bool(blocks), "flow must have a block with layers to calibrate, got none")
    measured = []
    for position, block in enumerate(blocks):
        if progress is not None:
            progress(f"block {block.index}: {block.tokens} tokens")
        amplification = 1.0 if block.index == blocks[0].index else _amplification(block, blocks[:position], states[0])
        estimate = None if estimates is None else flow.to_block(block.index, estimates[block.index], grid)
        allowed = target_error / len(blocks) / amplification
        measured.append(_measure(block, allowed, amplification, shares, rounds, estimate, pass_seconds))
    return Calibration(
        step=step,
        device=jax.devices()[0].device_kind,
        shape=tuple(x.shape[1:]),
        samples=samples,
        guidance=weight,
        target_error=target_error,
        num_blocks=config.num_blocks,
        blocks=tuple(measured),
        inverse_step=inverse_step,
    )


def _amplification(block: MeasuredBlock, lower_blocks: list[MeasuredBlock], data: HostArray) -> float:
    """The relative error of the final sample divided by that of a block's output.

    The error is that of the block's iteration, stopped early. It is propagated through the exact inverses of the blocks
    between the block and the data, whose iterations start from the solution.
    """
    solver = block.whole
    inexact, tolerance = block.x, 1e-4
    while tolerance > 1e-9:
        inexact = block.run(solver, block.z, tolerance).x
        if block.error(inexact) < 0.01:  # small enough to propagate linearly
            break
        tolerance /= 10
    error = block.error(inexact)
    tokens = block.flow.from_block(block.index, inexact, block.grid, block.samples)
    for lower in reversed(lower_blocks):
        z = lower.flow.to_block(lower.index, tokens, lower.grid)
        x = lower.run(lower.whole, lower.x, _EXACT, z).x
        tokens = lower.flow.from_block(lower.index, x, lower.grid, lower.samples)
    final_error = relative_error(tokens, data, block.samples)
    return final_error / error if 0 < error < np.inf and 0 < final_error < np.inf else 1.0


_PLAIN_STARTS: tuple[StartName, ...] = ("noise", "zero", "affine")

# Trials of a method: tolerance, depth and error of each.
_Trials = list[tuple[float, int, float]]


def _measure(
    block: MeasuredBlock,
    allowed: float,
    amplification: float,
    shares: tuple[int, ...],
    rounds: int,
    estimate: HostArray | None,
    pass_seconds: float,
) -> BlockCalibration:
    """All measurements of one block.

    Args:
      allowed: the error of its output that trials aim at.
      estimate: that of a learned inverse, or None.
      pass_seconds: time of its whole pass, which is charged to every block that it is used for.
    """
    affine = fit_affine(block.x, block.z)
    starts: dict[StartName, HostArray] = {
        "noise": block.z,
        "zero": np.zeros_like(block.z),
        "affine": np.asarray(affine(block.z)),
        "frame": block.z,  # the solver reads the previous frame itself
    }
    if estimate is not None:
        finite = np.asarray(estimate)
        starts["learned"] = np.where(np.isfinite(finite), finite, 0.0)
    n, solver = block.tokens, block.whole
    measures = tuple(
        StartMeasure(name, _norm_of_mean(block.run(solver, starts[name], _ONE_ITERATION).x - block.x, block.samples))
        for name in _PLAIN_STARTS
    )
    windows = sorted({max(_SHORTEST, -(-n // share)) for share in shares} - {n}, reverse=True)
    trials, best = _try_methods(block, starts, allowed, windows)
    solvers = {method: block.solver(method) for method in trials}

    def timed(block: MeasuredBlock, method: Method) -> Callable[[], Outcome]:
        start = starts[method.start][: block.x.shape[0]]
        tolerance = trials[method][-1][0]
        return lambda: block.run(solvers[method], start, tolerance)

    # All starts share one program.
    programs = {m: timed(block, m) for m in trials if (m.solver, m.window) != ("jacobi", n) or m.start == best}
    seconds = _seconds_per_evaluation(programs, rounds)
    seconds |= {method: seconds[Method("jacobi", n, best)] for method in trials if method not in seconds}
    costs = [Cost(method.window, block.samples, seconds[method]) for method in _corners(n, windows, best)]
    if block.samples > 1:
        single = block.first_samples(1)
        alone = {method: timed(single, method) for method in _corners(n, windows, best)}
        costs += [Cost(method.window, 1, value) for method, value in _seconds_per_evaluation(alone, rounds).items()]
    return BlockCalibration(
        block=block.index,
        tokens=n,
        crm=_convergence_ranking(block, solver),
        starts=measures,
        mean=affine.mean,
        scale=affine.scale,
        amplification=amplification,
        trials=tuple(
            Trial(method, tolerance, depth, error, _seconds(method, depth, seconds[method], pass_seconds))
            for method, results in trials.items()
            for tolerance, depth, error in results
            if np.isfinite(error)
        ),
        costs=tuple(costs),
    )


def _seconds(method: Method, depth: int, evaluation: float, learned_pass: float) -> float:
    """The time of a trial: of its evaluations, and of the pass of a learned inverse where it starts from one."""
    if method.start != "learned":
        return depth * evaluation
    return (depth - 1) * evaluation + learned_pass


def _try_methods(
    block: MeasuredBlock, starts: dict[StartName, HostArray], allowed: float, windows: list[int]
) -> tuple[dict[Method, _Trials], StartName]:
    """The trials of every method on a block, and the best of the starts other than "frame"."""
    n, full_jacobi = block.tokens, block.whole
    trials: dict[Method, _Trials] = {}
    for name in _PLAIN_STARTS:
        outcome = block.run(full_jacobi, starts[name], 1e-5)
        trials[Method("jacobi", n, name)] = [(1e-5, outcome.depth, block.error(outcome.x))]
    # Only the best start is followed further: a bad one may take many times the iterations.
    first = {name: trials[Method("jacobi", n, name)][0] for name in _PLAIN_STARTS}
    best = min(_PLAIN_STARTS, key=lambda name: (first[name][2] > 0.1, first[name][1]))  # converged, then fastest
    trials[Method("jacobi", n, best)] = _approach(block, full_jacobi, starts[best], allowed, 1e-5)
    methods = [Method("sliding", window, best) for window in windows if window < n] + [block.secant(best)]
    methods += [Method("jacobi", window, best) for window in windows[:1] if window < n]
    if block.spans_frames:
        methods += [Method("sliding", window, "frame") for window in windows[:1] if window < n]
    if "learned" in starts:
        methods += [Method("sliding", window, "learned") for window in (n, *windows) if window <= n]
        methods += [block.secant("learned")]
    for method in methods:
        tolerance = 1e-5 if method.squares else 1e-3
        solver = block.solver(method)
        found = _approach(block, solver, starts[method.start], allowed, tolerance, method.squares)
        passes = int(method.start == "learned")  # of the network that gave the estimate
        trials[method] = [(tolerance, depth + passes, error) for tolerance, depth, error in found]
    sequential = Method("sequential", 1)
    exact = block.run(block.solver(sequential), block.z, 0.0)
    trials[sequential] = [(0.0, exact.depth, block.error(exact.x))]
    return trials, best


def _corners(tokens: int, windows: list[int], best: StartName) -> list[Method]:
    """Methods whose times span those of all windows: one token, the shortest window, the whole."""
    shortest = [Method("sliding", windows[-1], best)] if windows and windows[-1] < tokens else []
    return [Method("sequential", 1), *shortest, Method("jacobi", tokens, best)]


def _approach(
    block: MeasuredBlock, solver: Solver, start: HostArray, allowed: float, tolerance: float, squares: bool = True
) -> _Trials:
    """Trials (tolerance, depth, error) whose error approaches `allowed`; the last one is within it if any is.

    squares: whether the tolerance bounds a mean square.
    """
    trials: _Trials = []
    power = 2.0 if squares else 1.0
    for _ in range(5):
        outcome = block.run(solver, start, tolerance)
        error = block.error(outcome.x)
        trials.append((tolerance, outcome.depth, error))
        if allowed / 5 <= error <= allowed or (error <= allowed and len(trials) >= 3) or error == 0:
            break
        factor = 0.01 if not np.isfinite(error) else float(np.clip(0.4 * allowed / error, 1e-2, 1e2))
        tolerance = float(np.clip(tolerance * factor**power, 1e-13 if squares else 1e-7, 1e-1))
    # Loosest first. Trials above the allowed error may serve another target error.
    ordered = sorted(set(trials), reverse=True)
    good = [trial for trial in ordered if trial[2] <= allowed]
    return [trial for trial in ordered if trial not in good] + good[1:] + good[:1]


def _seconds_per_evaluation(programs: dict[Method, Callable[[], Outcome]], rounds: int) -> dict[Method, float]:
    """The fastest run of each program; the programs take turns, so that other load affects all of them."""
    best = dict.fromkeys(programs, float("inf"))
    for index in range(rounds + 1):  # the first run compiles
        for method, run in programs.items():
            begin = time.perf_counter()
            depth = run().depth
            if index:
                best[method] = min(best[method], (time.perf_counter() - begin) / max(depth, 1))
    return best


def fit_affine(x: Float[AnyArray, "rows n c"], z: Float[AnyArray, "rows n c"]) -> AffineStart:
    """The least-squares fit x = mean + scale z of every channel; x, z: [rows, n, c]."""
    noise, data = (np.asarray(a, np.float64).reshape(-1, x.shape[-1]) for a in (z, x))
    noise_mean, data_mean = noise.mean(axis=0), data.mean(axis=0)
    variance = ((noise - noise_mean) ** 2).mean(axis=0)
    slope = ((noise - noise_mean) * (data - data_mean)).mean(axis=0) / np.maximum(variance, 1e-12)
    return AffineStart(tuple(map(float, data_mean - slope * noise_mean)), tuple(map(float, slope)))


def _norm_of_mean(values: HostArray, samples: int) -> float:
    """Norm of the mean of values [rows, n, c] over the samples."""
    means = np.asarray(values, np.float64).reshape(samples, -1).mean(axis=0)
    norm = float(np.linalg.norm(means))
    return norm if np.isfinite(norm) else float(np.finfo(np.float32).max)


def _convergence_ranking(block: MeasuredBlock, solver: Solver) -> float:
    """CRM: |mean(scale z)| |W_scale| + |W_mean|, W the two halves of the output projection (spectral norms)."""
    # One iteration from the solution with zero noise gives the means; the solution minus these is scale z.
    means = block.run(solver, block.x, _ONE_ITERATION, np.zeros_like(block.z)).x
    kernel = np.asarray(block.flow.blocks[block.index].proj_out.kernel[...], np.float64)
    if block.config.scale == "unit":
        return float(np.linalg.norm(kernel, 2))
    scale_kernel, mean_kernel = np.split(kernel, 2, axis=1)
    scaled_noise = _norm_of_mean(block.x - means, block.samples)
    return scaled_noise * float(np.linalg.norm(scale_kernel, 2)) + float(np.linalg.norm(mean_kernel, 2))
