"""Measures how each block of a flow is best inverted, on samples of its own data.

The forward pass gives both ends of every block, so that every trial is compared with the exact answer and no
sequential run is needed for that. The two measures of GS-Jacobi (arXiv 2505.12849) come out on the way; beyond them,
solvers are simply tried: network evaluations, error, seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check, check_integer, check_real
from starflow_jax.core.config.flow import FlowConfig
from starflow_jax.flows.flow import Flow
from starflow_jax.flows.guidance import AnyGuidance
from starflow_jax.flows.order import Grid
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
from starflow_jax.solvers.base import Solver
from starflow_jax.solvers.inverse import BlockTask
from starflow_jax.solvers.start import AffineStart
from starflow_jax.solvers.tolerance import with_tolerance

# A tolerance that one iteration meets, and one that float32 just reaches.
_ONE_ITERATION, _EXACT = 1e30, 1e-11
# Shares of a sequence that are tried as windows; none below _SHORTEST tokens.
_SHARES, _SHORTEST = (4, 16), 8
# Runs of which the shortest counts.
_ROUNDS = 3


# A numpy array where a `jax.Array` would do as well: calibration computes on the host what no network computes.
_Host = Any


class _Probe(NamedTuple):
    """What decides a compiled trial."""

    config: FlowConfig
    block: int
    grid: Grid
    solver: Solver


class _Found(NamedTuple):
    x: _Host
    depth: int


@functools.partial(jax.jit, static_argnums=0)
def _try(
    probe: _Probe,
    params: Params,
    z: jax.Array,
    start: jax.Array,
    tolerance: float | jax.Array,
    cond: jax.Array | None,
    guidance: AnyGuidance | None,
) -> tuple[jax.Array, jax.Array]:
    """Inverts one block from z, start: [rows, n, c] in its order, with another tolerance than `probe.solver` has."""
    flow = merge(abstract(probe.config)[0], params)
    solver = with_tolerance(probe.solver, tolerance)
    if getattr(probe.solver, "start", "frame") != "frame":
        # As with the tolerance, one program serves all starts.
        object.__setattr__(solver, "guess", lambda noise: start[:, start.shape[1] - noise.shape[1] :])
    task = BlockTask(flow, cond, guidance, None, index=probe.block, grid=probe.grid, solver=solver)
    own, _ = flow.block_grid(probe.block, probe.grid)
    span = task.span(own.tokens)
    x, report = span.solve(z)
    return x, jnp.sum(report.evaluations)


@functools.partial(jax.jit, static_argnums=0)
def _forward(config: FlowConfig, params: Params, x: jax.Array, cond: jax.Array | None, guidance: AnyGuidance | None):
    return merge(abstract(config)[0], params).forward(x, cond, guidance=guidance).tokens


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
    """One block with both of its ends, [rows, n, c] in its own order; on the host, where little is compiled."""

    config: FlowConfig
    params: Params
    flow: Flow
    index: int
    grid: Grid
    cond: _Host
    guidance: AnyGuidance | None
    x: _Host
    z: _Host
    samples: int

    @property
    def tokens(self) -> int:
        return self.x.shape[1]

    @property
    def spans_frames(self) -> bool:
        """Whether there is a frame before to start from."""
        own, _ = self.flow.block_grid(self.index, self.grid)
        return own.frames is not None and own.frames > 1

    @property
    def whole(self) -> Solver:
        """Jacobi iteration of all tokens at once."""
        return self.solver(Method("jacobi", self.tokens))

    def solver(self, method: Method) -> Solver:
        """The solver of a trial: of starts only "frame" is its own program, of tolerances none is."""
        start: StartName = "frame" if method.start == "frame" else "noise"
        return dataclasses.replace(method, start=start).build(0.0, None, self.tokens)

    def secant(self, start: StartName) -> Method:
        """The secant solver of all tokens, looking at the token before, the one above and that of the last frame."""
        own, _ = self.flow.block_grid(self.index, self.grid)
        lags = [1] + [own.columns] * (1 < own.columns < own.tokens) + [own.frame] * self.spans_frames
        # A fit needs more tokens than coefficients; across frames, where tokens differ more, several times as many.
        pool = (5 if self.spans_frames else 2) * len(lags) * self.x.shape[-1]
        return Method("secant", self.tokens, start, tuple(dict.fromkeys(lags)), pool)

    def run(self, solver: Solver, start: _Host, tolerance: float, z: _Host = None) -> _Found:
        """A trial with all samples."""
        probe = _Probe(self.config, self.index, self.grid, solver)
        z = self.z if z is None else z
        x, depth = _try(probe, self.params, z, start, np.float32(tolerance), self.cond, self.guidance)
        return _Found(np.asarray(x), int(depth))

    def of_samples(self, count: int) -> _Block:
        """The same with the first samples alone."""
        rows = self.x.shape[0] // self.samples * count
        cond = None if self.cond is None else self.cond[:count]
        guidance = self.guidance
        null = getattr(guidance, "null", None)
        if guidance is not None and null is not None and null.shape[0] == self.samples:
            guidance = dataclasses.replace(guidance, null=null[:count])
        return dataclasses.replace(self, cond=cond, guidance=guidance, x=self.x[:rows], z=self.z[:rows], samples=count)

    def error(self, x: _Host) -> float:
        """Relative error of the worst sample."""
        return relative_error(x, self.x, self.samples)


def relative_error(found: _Host, expected: _Host, samples: int) -> float:
    """Largest over the samples of |found - expected| / |expected| (root mean square); infinite where not finite."""
    size = np.asarray(expected, np.float64).reshape(samples, -1)
    apart = np.asarray(found, np.float64).reshape(samples, -1) - size
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.sqrt((apart**2).sum(axis=1) / np.maximum((size**2).sum(axis=1), 1e-30))
    return float(errors.max()) if np.isfinite(errors).all() else float("inf")


def calibrate(
    config: FlowConfig,
    params: Params,
    x: jax.Array,
    cond: jax.Array | None = None,
    *,
    guidance: AnyGuidance | None = None,
    weight: float = 0.0,
    target_error: float = 1e-3,
    step: int = 0,
    shares: tuple[int, ...] = _SHARES,
    rounds: int = _ROUNDS,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Calibrates the solvers of a flow.

    Args:
      config, params: the flow.
      x: samples, [B, H, W, C] or [B, T, H, W, C], as the flow is trained to see them (noise added).
      cond: their conditions, as in `Flow.forward`.
      guidance: as the flow will be sampled; weight: its weight, for the record.
      target_error: relative error of the final sample that trials aim at.
      step: of the checkpoint, for the record.
      shares: windows of 1/share of a block's sequence are tried besides the whole.
      rounds: runs of each trial, of which the shortest time counts.
      progress: called with a few words before each block.

    Raises:
      ValueError: samples or conditions that do not fit the flow, a number out of range, or a flow without layers.
    """
    check_real("target_error", target_error, minimum=1e-6)
    check_integer("rounds", rounds, minimum=1)
    flow = merge(abstract(config)[0], params)
    samples, grid = x.shape[0], Grid.of(config, x.shape)
    states = jax.device_get(_forward(config, params, x, cond, guidance))
    cond = jax.device_get(cond)
    blocks = [
        _Block(
            config, params, flow, index, grid, cond, guidance,
            flow.to_block(index, states[index], grid), flow.to_block(index, states[index + 1], grid), samples,
        )
        for index in range(config.num_blocks)
        if not flow.blocks[index].is_identity
    ]  # fmt: skip
    check(bool(blocks), "flow must have a block with layers to calibrate, got none")
    found = []
    for place, block in enumerate(blocks):
        if progress is not None:
            progress(f"block {block.index}: {block.tokens} tokens")
        amplification = 1.0 if block.index == blocks[0].index else _amplification(block, blocks[:place], states[0])
        found.append(_measure(block, target_error / len(blocks) / amplification, amplification, shares, rounds))
    return Calibration(
        step=step,
        device=jax.devices()[0].device_kind,
        shape=tuple(x.shape[1:]),
        samples=samples,
        guidance=weight,
        target_error=target_error,
        num_blocks=config.num_blocks,
        blocks=tuple(found),
    )


def _amplification(block: _Block, before: list[_Block], data: _Host) -> float:
    """What a relative error of a block's output becomes in the final sample.

    The error is that of the block's own iteration, stopped early, and goes through the exact inverses of the blocks
    between it and the data, which start from the answer.
    """
    whole = block.whole
    wrong, tolerance = block.x, 1e-4
    while tolerance > 1e-9:
        wrong = block.run(whole, block.z, tolerance).x
        if block.error(wrong) < 0.01:  # small enough for the error to pass through linearly
            break
        tolerance /= 10
    entered = block.error(wrong)
    tokens = block.flow.from_block(block.index, wrong, block.grid, block.samples)
    for lower in reversed(before):
        z = lower.flow.to_block(lower.index, tokens, lower.grid)
        x = lower.run(lower.whole, lower.x, _EXACT, z).x
        tokens = lower.flow.from_block(lower.index, x, lower.grid, lower.samples)
    left = relative_error(tokens, data, block.samples)
    return left / entered if 0 < entered < np.inf and 0 < left < np.inf else 1.0


def _measure(
    block: _Block, allowed: float, amplification: float, shares: tuple[int, ...], rounds: int
) -> BlockCalibration:
    affine = fit_affine(block.x, block.z)
    starts: dict[StartName, _Host] = {
        "noise": block.z,
        "zero": np.zeros_like(block.z),
        "affine": np.asarray(affine(block.z)),
        "frame": block.z,  # the solver looks back by itself
    }
    plain: tuple[StartName, ...] = ("noise", "zero", "affine")
    n = block.tokens
    whole = block.whole
    measures = tuple(
        StartMeasure(name, _norm_of_mean(block.run(whole, starts[name], _ONE_ITERATION).x - block.x, block.samples))
        for name in plain
    )
    tried: dict[Method, list[tuple[float, int, float]]] = {}
    for name in plain:
        found = block.run(whole, starts[name], 1e-5)
        tried[Method("jacobi", n, name)] = [(1e-5, found.depth, block.error(found.x))]
    # Only the best start is followed further: a bad one may take many times the iterations.
    looks = {name: tried[Method("jacobi", n, name)][0] for name in plain}
    best = min(plain, key=lambda name: (looks[name][2] > 0.1, looks[name][1]))  # settled at all, and soon
    tried[Method("jacobi", n, best)] = _approach(block, whole, starts[best], allowed, 1e-5)
    windows = sorted({max(_SHORTEST, -(-n // share)) for share in shares} - {n}, reverse=True)
    others = [Method("sliding", window, best) for window in windows if window < n] + [block.secant(best)]
    others += [Method("jacobi", window, best) for window in windows[:1] if window < n]
    if block.spans_frames:
        others += [Method("sliding", window, "frame") for window in windows[:1] if window < n]
    for method in others:
        first = 1e-5 if method.squares else 1e-3
        tried[method] = _approach(block, block.solver(method), starts[method.start], allowed, first, method.squares)
    sequential = Method("sequential", 1)
    solvers = {method: block.solver(method) for method in [sequential, *tried]}
    exact = block.run(solvers[sequential], block.z, 0.0)
    tried[sequential] = [(0.0, exact.depth, block.error(exact.x))]

    def timed(block: _Block, method: Method) -> Callable[[], _Found]:
        start = starts[method.start][: block.x.shape[0]]
        tolerance = tried[method][-1][0]
        return lambda: block.run(solvers[method], start, tolerance)

    # Starts are one program.
    programs = {m: timed(block, m) for m in tried if (m.solver, m.window) != ("jacobi", n) or m.start == best}
    seconds = _seconds_per_evaluation(programs, rounds)
    seconds |= {method: seconds[Method("jacobi", n, best)] for method in tried if method not in seconds}
    costs = [Cost(method.window, block.samples, seconds[method]) for method in _corners(n, windows, best)]
    if block.samples > 1:
        one = block.of_samples(1)
        alone = {method: timed(one, method) for method in _corners(n, windows, best)}
        costs += [Cost(method.window, 1, value) for method, value in _seconds_per_evaluation(alone, rounds).items()]
    return BlockCalibration(
        block=block.index,
        tokens=n,
        crm=_convergence_ranking(block, whole),
        starts=measures,
        mean=affine.mean,
        scale=affine.scale,
        amplification=amplification,
        trials=tuple(
            Trial(method, tolerance, depth, error, depth * seconds[method])
            for method, outcomes in tried.items()
            for tolerance, depth, error in outcomes
            if np.isfinite(error)
        ),
        costs=tuple(costs),
    )


def _corners(tokens: int, windows: list[int], best: StartName) -> list[Method]:
    """Methods whose times span those of all windows: one token, the shortest window, the whole."""
    shortest = [Method("sliding", windows[-1], best)] if windows and windows[-1] < tokens else []
    return [Method("sequential", 1), *shortest, Method("jacobi", tokens, best)]


def _approach(
    block: _Block, solver: Solver, start: _Host, allowed: float, tolerance: float, squares: bool = True
) -> list[tuple[float, int, float]]:
    """Trials (tolerance, depth, error) that approach an allowed error; the last one keeps it if any does.

    squares: whether the tolerance bounds a mean square.
    """
    found: list[tuple[float, int, float]] = []
    power = 2.0 if squares else 1.0
    for _ in range(5):
        result = block.run(solver, start, tolerance)
        error = block.error(result.x)
        found.append((tolerance, result.depth, error))
        if allowed / 5 <= error <= allowed or (error <= allowed and len(found) >= 3) or error == 0:
            break
        factor = 0.01 if not np.isfinite(error) else float(np.clip(0.4 * allowed / error, 1e-2, 1e2))
        tolerance = float(np.clip(tolerance * factor**power, 1e-13 if squares else 1e-7, 1e-1))
    # Loosest first; what misses the allowed error may do for another target.
    kept = sorted(set(found), reverse=True)
    good = [one for one in kept if one[2] <= allowed]
    return [one for one in kept if one not in good] + [one for one in good[1:]] + good[:1]


def _seconds_per_evaluation(programs: dict[Method, Callable[[], _Found]], rounds: int) -> dict[Method, float]:
    """Shortest time of each, all taking turns so that a busy moment falls on all of them."""
    best = dict.fromkeys(programs, float("inf"))
    for number in range(rounds + 1):  # the first compiles
        for method, run in programs.items():
            begun = time.perf_counter()
            depth = run().depth
            if number:
                best[method] = min(best[method], (time.perf_counter() - begun) / max(depth, 1))
    return best


def fit_affine(x: _Host, z: _Host) -> AffineStart:
    """The least-squares fit x = mean + scale z of every channel: x, z [rows, n, c]."""
    given, wanted = (np.asarray(a, np.float64).reshape(-1, x.shape[-1]) for a in (z, x))
    middle, centre = given.mean(axis=0), wanted.mean(axis=0)
    spread = ((given - middle) ** 2).mean(axis=0)
    slope = ((given - middle) * (wanted - centre)).mean(axis=0) / np.maximum(spread, 1e-12)
    return AffineStart(tuple(map(float, centre - slope * middle)), tuple(map(float, slope)))


def _norm_of_mean(values: _Host, samples: int) -> float:
    """Norm of the mean over the samples: [rows, n, c]."""
    means = np.asarray(values, np.float64).reshape(samples, -1).mean(axis=0)
    norm = float(np.linalg.norm(means))
    return norm if np.isfinite(norm) else float(np.finfo(np.float32).max)


def _convergence_ranking(block: _Block, whole: Solver) -> float:
    """CRM: |mean(scale z)| |W_scale| + |W_mean|, W the two halves of the output projection (spectral norms)."""
    # One iteration from the answer with no noise gives the means; the rest of the answer is scale z.
    means = block.run(whole, block.x, _ONE_ITERATION, np.zeros_like(block.z)).x
    kernel = np.asarray(block.flow.blocks[block.index].proj_out.kernel[...], np.float64)
    if block.config.scale == "unit":
        return float(np.linalg.norm(kernel, 2))
    of_scale, of_mean = np.split(kernel, 2, axis=1)
    moved = _norm_of_mean(block.x - means, block.samples)
    return moved * float(np.linalg.norm(of_scale, 2)) + float(np.linalg.norm(of_mean, 2))
