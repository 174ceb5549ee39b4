"""Compares all solvers at the same error, by wall time and by depth.

    python experiments/benchmarks/solvers.py --workdir runs/video --workdir runs/image --json s.json --plot s.png
    python experiments/benchmarks/solvers.py                 # random weights of the released shapes, scaled down
    python experiments/benchmarks/solvers.py --quick         # tiny flows, one batch size: shows that everything runs

Each solver inverts noise at several tolerances; its row in the table has the loosest tolerance whose relative error
with respect to the sequential result (root mean square, worst sample of the batch) is within the target, 1e-3. Columns:
seconds (best of interleaved rounds, without compilation); depth (consecutive network evaluations, which determine the
latency on an accelerator); tokens that passed through the network (which determine the time on a CPU; guidance doubles
them for all solvers); largest and mean error; and the factor of the solver's tolerance. For every solver the factor is
chosen on the noise that is measured, except that `auto` is never loosened. `auto` is chosen for each batch size by the
run's calibration.json, or else by a new calibration: once for least time, and once for least depth. The baseline is
this project's sequential solver, one fused program.

The second table attributes the gain at batch 1 to block length, start, the secant solver and prefix commit, one at a
time. For videos it gives the depth when the shallow blocks follow the deep block frame by frame: that of the deep
block, then that of the shallow blocks for the last frame only.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from solver_models import Model, models_of
from solver_report import plot, table
from timing import best_seconds

from starflow_jax.flows.order import Grid
from starflow_jax.flows.parameters import Params, abstract, merge
from starflow_jax.solvers import (
    AnySolver,
    BlockTask,
    Inversion,
    Jacobi,
    PerBlock,
    Sequential,
    SlidingJacobi,
    gs_jacobi,
    inverse,
    named_solver,
    selective,
    solver_for_block,
)
from starflow_jax.solvers.automatic.block_solver_choice import auto
from starflow_jax.solvers.automatic.calibration import BlockCalibration, Method
from starflow_jax.solvers.tolerance import loosened

# Factors of a solver's tolerance that are tried, loosest first.
_FACTORS = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
_MAX = 1024


def uniform_solvers(model: Model) -> dict[str, AnySolver]:
    """The published solvers, with tolerances that give errors near the target."""
    count, calibration = model.config.num_blocks, model.calibration
    starts: dict[int, Any] = {}
    for block in calibration.blocks:
        igm = {measure.start: measure.igm for measure in block.starts if measure.start in ("noise", "zero")}
        starts[block.block] = min(igm, key=lambda name: igm[name])
    limit: dict[str, Any] = {"tolerance": 1e-6, "max_iterations": _MAX}
    tough = {"tough_iterations": _MAX, "other_iterations": _MAX, "tolerance": 1e-6}
    return {
        "sequential": Sequential(),
        "jacobi, as released": Jacobi(**limit),
        "jacobi, as in the paper": Jacobi.paper(**limit),
        "selective": selective(count, **limit),
        "gs-jacobi": gs_jacobi(count, calibration.ranked()[:1], starts=starts, **tough),
        "sliding 64": SlidingJacobi(),
        "secant": named_solver("secant", model.config, tolerance=1e-6, max_iterations=_MAX),
    }


def auto_solvers(model: Model, batch: int) -> dict[str, AnySolver]:
    """The solvers that the calibration chooses for a batch size."""
    return {
        "auto, time": auto(model.calibration, batch=batch, objective="time"),
        "auto, depth": auto(model.calibration, batch=batch, objective="depth"),
    }


def attributed_solvers(model: Model) -> dict[str, AnySolver]:
    """Solvers from the released Jacobi schedule to those that `auto` may choose, with one change at a time."""

    def every(method: Callable[[BlockCalibration], Method], tolerance: float) -> PerBlock:
        block = {of: method(of).build(tolerance, of.affine, of.tokens) for of in model.calibration.blocks}
        by_block = {of.block: solver for of, solver in block.items()}
        return PerBlock(tuple(by_block.get(k, Sequential()) for k in range(model.config.num_blocks)))

    def tried(block: BlockCalibration, solver: str) -> Method:
        return next(trial.method for trial in block.trials if trial.method.solver == solver)

    def window(block: BlockCalibration) -> int:
        slides = [trial.method.window for trial in block.trials if trial.method.solver == "sliding"]
        return min(slides, default=block.tokens)

    def start(block: BlockCalibration):
        return tried(block, "secant").start

    released = Jacobi(start="noise", tolerance=1e-6, max_iterations=_MAX)
    return {
        "jacobi, as released, from noise": released,
        "  block: the whole sequence": every(lambda f: Method("jacobi", f.tokens, "noise"), 1e-6),
        "  + start: calibrated": every(lambda f: Method("jacobi", f.tokens, start(f)), 1e-6),
        "  + secant": every(lambda f: tried(f, "secant"), 1e-6),
        "  block: short": every(lambda f: Method("jacobi", window(f), "noise"), 1e-6),
        "  short + start": every(lambda f: Method("jacobi", window(f), start(f)), 1e-6),
        "  short + start + prefix commit": every(lambda f: Method("sliding", window(f), start(f)), 1e-3),
    }


class Race:
    """Comparison of solvers for one model and batch size.

    Attributes:
      model, batch: the model and the batch size. target: largest relative error.
    """

    def __init__(self, model: Model, batch: int, target: float):
        self.model, self.batch, self.target = model, batch, target
        self.cond = model.conditions(batch)
        self.z = jax.random.normal(jax.random.key(7), (batch, *model.shape))
        self.exact: np.ndarray | None = None
        self.deep: jax.Array | None = None

    def program(self, solver: AnySolver) -> tuple[Callable[[float], Inversion], float]:
        """The compiled inverse as a function of the factor of the tolerance, and the compile time in seconds."""
        start = time.perf_counter()
        arguments = (self.model.params, self.z, self.cond)
        run = _invert.lower(self.model.config, solver, self.model.weight, *arguments, jnp.float32(1.0)).compile()
        seconds = time.perf_counter() - start
        return lambda factor: jax.block_until_ready(run(*arguments, jnp.float32(factor))), seconds

    def errors(self, x: jax.Array) -> np.ndarray:
        """Relative error of every sample with respect to the sequential result."""
        assert self.exact is not None  # the sequential solver runs first
        difference = (np.asarray(x, np.float64) - self.exact).reshape(self.batch, -1)
        return np.linalg.norm(difference, axis=1) / np.linalg.norm(self.exact.reshape(self.batch, -1), axis=1)

    def sweep(self, name: str, solver: AnySolver, *, curve: bool) -> tuple[dict[str, Any], Callable[[], Any]]:
        """A row of the table without its seconds, and the run to be timed.

        curve: whether to continue to a tenth of the target, for the plot.
        """
        run, compile_seconds = self.program(solver)
        points = []
        is_exact = isinstance(solver, Sequential)
        # `auto` keeps the tolerance that it chose; it is tightened only if the target is missed.
        max_factor = 1.0 if is_exact or name.startswith("auto") else _FACTORS[0]
        for factor in _FACTORS:
            if factor > max_factor and not (curve and not is_exact):
                continue
            start = time.perf_counter()
            result = run(factor)
            seconds = time.perf_counter() - start
            if is_exact:
                self.exact = np.asarray(result.x, np.float64)
            errors = self.errors(result.x)
            points.append(
                {
                    "factor": factor,
                    "depth": int(result.evaluations),
                    "tokens": int(result.tokens),
                    "max_error": float(np.nan_to_num(errors.max(), nan=np.inf)),
                    "mean_error": float(np.nan_to_num(errors.mean(), nan=np.inf)),
                    "seconds_once": seconds,
                    "depth_of_blocks": {str(r.block): int(jnp.sum(r.evaluations)) for r in result.reports},
                }
            )
            if factor <= max_factor and points[-1]["max_error"] <= self.target / (10 if curve else 1):
                break
        good = [p for p in points if p["max_error"] <= self.target and p["factor"] <= max_factor]
        chosen = good[0] if good else points[-1]
        line = {"solver": name, **chosen, "within_target": bool(good), "compile": compile_seconds}
        if curve:
            line["curve"] = points
        if self.model.frames:
            line["pipelined_depth"] = self.pipelined(solver, chosen)
        return line, functools.partial(run, chosen["factor"])

    def pipelined(self, solver: AnySolver, line: dict[str, Any]) -> int:
        """Depth of the deep block plus that of the shallow blocks for the last frame only."""
        deep = str(self.model.config.num_blocks - 1)
        if isinstance(solver, Sequential):
            return line["depth"]
        if self.deep is None:  # the exact output of the deep block
            arguments = (self.model.params, self.z, self.cond, jnp.float32(1.0))
            self.deep = _invert(self.model.config, Sequential(), self.model.weight, *arguments).states[1]
        shallow = _last_frame(
            self.model.config, solver, self.model.params, self.deep[:, -1:], self.cond, jnp.float32(line["factor"])
        )
        return line["depth_of_blocks"].get(deep, 0) + int(shallow)

    def run(self, solvers: dict[str, AnySolver], rounds: int, *, curve: bool) -> list[dict[str, Any]]:
        """The rows of the given solvers, the sequential one first; the solvers are timed in alternation."""
        lines, programs = [], {}
        for name, solver in solvers.items():
            line, programs[name] = self.sweep(name, solver, curve=curve)
            lines.append(line)
            print(f"  batch {self.batch}, {name.strip()}: depth {line['depth']}", file=sys.stderr, flush=True)
        seconds = best_seconds(programs, rounds=rounds)
        for line in lines:
            line |= {"batch": self.batch, "seconds": seconds[line["solver"]]}
            line["faster"] = lines[0]["seconds"] / line["seconds"]
            line["shallower"] = lines[0]["depth"] / line["depth"]
        return lines


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _invert(config, solver: AnySolver, weight: float, params: Params, z, cond, factor) -> Inversion:
    flow = merge(abstract(config)[0], params)
    guidance = Model.guidance(config, weight, cond)
    return inverse(flow, z, cond, solver=loosened(solver, factor), guidance=guidance)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _last_frame(config, solver: AnySolver, params: Params, x, cond, factor) -> jax.Array:
    """Depth of the shallow blocks for one frame [B, 1, H, W, C] of the output of the deep block."""
    flow = merge(abstract(config)[0], params)
    tokens, depth, count = flow.tokens_of(x), jnp.int32(0), config.num_blocks
    for index in reversed(range(count - 1)):
        if not flow.blocks[index].is_identity:
            block_solver = loosened(solver_for_block(solver, index, count), factor)
            task = BlockTask(
                flow, cond, None, None, index=index, grid=Grid.from_shape(config, x.shape), solver=block_solver
            )
            tokens, report = task.solve(tokens)
            depth = depth + jnp.sum(report.evaluations)
    return depth


def measure(
    model: Model, batches: list[int], rounds: int, target: float, only: list[str] | None = None
) -> dict[str, Any]:
    """Both tables of a model; the second one is empty if `only` selects solvers of the first."""
    lines, attribution = [], []
    for index, batch in enumerate(batches):
        race = Race(model, batch, target)
        solvers = uniform_solvers(model) | auto_solvers(model, batch)
        if only:
            solvers = {name: solver for name, solver in solvers.items() if name in ("sequential", *only)}
        lines += race.run(solvers, rounds, curve=index == 0)
        if not index and not only:
            ladder = {"sequential": Sequential(), **attributed_solvers(model), **auto_solvers(model, batch)}
            attribution = race.run(ladder, rounds, curve=False)
    return {
        "tokens": model.tokens,
        "guidance": model.weight,
        "step": model.calibration.step,
        "lines": lines,
        "attribution": attribution,
        "calibration": json.loads(model.calibration.to_json()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", metavar="DIR", type=Path, action="append", default=[], help="a trained run")
    parser.add_argument("--random", action="store_true", help="also the random-weight models, beside --workdir")
    parser.add_argument("--guidance", metavar="W", type=float, help="of trained runs (default: their configuration's)")
    parser.add_argument("--batch", metavar="N", type=int, action="append", help="repeatable (default: 1, 4 and 16)")
    parser.add_argument(
        "--only", metavar="NAME", action="append", help='a line of the table, such as "auto, time" (repeatable)'
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program, of which the best counts")
    parser.add_argument("--target", type=float, default=1e-3, metavar="X", help="largest relative error")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="also draw error against time and depth")
    parser.add_argument("--quick", action="store_true", help="tiny flows once, batch 1")
    options = parser.parse_args(arguments)
    batches = options.batch or ([1] if options.quick else [1, 4, 16])
    rounds = 1 if options.quick else options.rounds
    results = {}
    for model in models_of(options):
        results[model.name] = measure(model, batches, rounds, options.target, options.only)
        print(table(model.name, results[model.name], options.target), end="\n\n", flush=True)
    if options.json:
        about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "target": options.target}
        options.json.write_text(json.dumps({**about, "models": results}, indent=1))
    if options.plot:
        plot(options.plot, results, options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
