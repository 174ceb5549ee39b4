"""How many Jacobi iterations an initial estimate saves: starts that are known to be wrong by a given amount.

    python experiments/benchmarks/start_errors.py --workdir runs/moving --guidance 3 --json starts.json
    python experiments/benchmarks/start_errors.py --workdir runs/moving --quick

The sequential solver draws samples, so that the input of every block is known. Every block is then iterated from its
exact input plus Gaussian noise of a relative error (root mean square), whole sequences at a time, and the relative
error of the worst sample is measured after every iteration. A triangular iteration ends after as many iterations as
tokens; before that, its error may grow by far more than it shrinks in the end (transient growth). The table
shows what estimates with independent errors of this size would save in comparison with the start from the noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.flows.guidance import make_guidance
from starflow_jax.flows.order import Grid
from starflow_jax.sampling.loaded_run import Run, open_run
from starflow_jax.sampling.sample_requests import RunRequest
from starflow_jax.solvers import Sequential, inverse
from starflow_jax.solvers.automatic.measured_block import MeasuredBlock
from starflow_jax.training.run_calibration import load_conditions

ERRORS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
SHOWN = (1, 2, 4, 8, 16, 32)
# Tolerances that the first iteration meets, and one that changes nothing.
_ONE_ITERATION, _UNCHANGED = 1e30, 1e-30


def exact_blocks(run: Run, *, samples: int, weight: float, seed: int) -> list[MeasuredBlock]:
    """The blocks with layers, the deepest first, with their exact inputs and outputs for samples of the flow."""
    config = run.config.flow
    cond = load_conditions(run.config, "test", samples)
    guidance = None
    if weight:
        check(cond is not None, f"--guidance must be 0 for a run that reads no condition, got {weight:g}")
        guidance = make_guidance(config.family, cond, weight)
    frames = (run.config.data.frames,) if run.config.data.frames else ()
    shape = (samples, *frames, *config.image_shape, config.channels)
    flow = run.flow

    @jax.jit
    def draw(flow: Any, z: jax.Array) -> tuple[jax.Array, ...]:
        return inverse(flow, z, cond, solver=Sequential(), guidance=guidance).states

    z = jax.random.normal(jax.random.key(seed), shape)
    states = [np.asarray(flow.tokens_of(state)) for state in reversed(draw(flow, z)[1:])]
    states.append(np.asarray(flow.noise_tokens(z)))
    grid, blocks = Grid.from_shape(config, shape), []
    for index in reversed(range(config.num_blocks)):
        if not flow.blocks[index].is_identity:
            x, noise = (np.asarray(flow.to_block(index, states[i], grid)) for i in (index, index + 1))
            blocks.append(MeasuredBlock(config, run.params, flow, index, grid, cond, guidance, x, noise, samples))
    return blocks


def at_rest(block: MeasuredBlock) -> MeasuredBlock:
    """The block with the input that the iteration itself ends at.

    It differs from the sequential solver's by the rounding of float32, which the block amplifies as it does any error.
    """
    return dataclasses.replace(block, x=block.run(block.whole, block.x, _UNCHANGED).x)


def errors_of(block: MeasuredBlock, start: np.ndarray, *, iterations: int) -> list[float]:
    """The relative error of the worst sample before the first iteration and after each."""
    x, errors = start, [block.error(start)]
    while len(errors) <= min(iterations, block.tokens) and errors[-1] > 0:
        x = block.run(block.whole, x, _ONE_ITERATION).x
        errors.append(block.error(x))
    return errors


def measure(block: MeasuredBlock, *, target: float, iterations: int, seed: int) -> list[dict[str, Any]]:
    """One row for the start from the noise and for every start of a known error.

    `iterations` is the number after which the error stays within `target`, None where it does not.
    """
    scale = float(np.sqrt(np.mean(np.square(block.x, dtype=np.float64))))
    noise = np.random.default_rng(seed).standard_normal(block.x.shape)
    starts = {"noise": np.asarray(block.z)}
    starts |= {f"{error:.0e}": (block.x + error * scale * noise).astype(np.float32) for error in ERRORS}
    rows = []
    for name, start in starts.items():
        errors = errors_of(block, start, iterations=iterations)
        above = [index for index, error in enumerate(errors) if error > target]
        rows.append(
            {
                "block": block.index,
                "start": name,
                "errors": errors,
                "largest_over_start": max(errors) / errors[0],
                "iterations": None if errors[-1] > target else above[-1] + 1 if above else 0,
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Prints one table for every block; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="a trained run")
    parser.add_argument("--guidance", type=float, default=0.0, metavar="W", help="weight of guidance (default 0)")
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="samples (default 4)")
    parser.add_argument("--target-error", type=float, default=1e-3, metavar="X", help="relative error (default 1e-3)")
    parser.add_argument("--iterations", type=int, default=80, metavar="N", help="of every start (default 80)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of noise and errors (default 0)")
    parser.add_argument("--quick", action="store_true", help="one sample, 8 iterations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args(argv)
    run = open_run(RunRequest(arguments.workdir))
    samples, iterations = (1, 8) if arguments.quick else (arguments.samples, arguments.iterations)
    rows = []
    for block in exact_blocks(run, samples=samples, weight=arguments.guidance, seed=arguments.seed):
        settled = at_rest(block)
        rounding = settled.error(block.x)
        found = measure(settled, target=arguments.target_error, iterations=iterations, seed=arguments.seed)
        rows += [row | {"rounding": rounding} for row in found]
        header = [
            "start",
            *(f"after {count}" for count in SHOWN),
            "grows by",
            f"within {arguments.target_error:.0e} from",
        ]
        table = [header]
        for row in found:
            errors = row["errors"]
            shown = [f"{errors[count]:.1e}" if count < len(errors) else "" for count in SHOWN]
            table.append(
                [
                    row["start"],
                    *shown,
                    f"{row['largest_over_start']:.1f}",
                    "more" if row["iterations"] is None else str(row["iterations"]),
                ]
            )
        title = f"block {block.index}, {block.tokens} tokens, {samples} samples, guidance {arguments.guidance:g}"
        print(f"{title}; sequential and whole-sequence solutions differ by {rounding:.1e}")
        print(text_table(table), end="\n\n", flush=True)
    if arguments.json is not None:
        figures = {"workdir": str(arguments.workdir), "step": run.step, "samples": samples, "rows": rows}
        write_json(arguments.json, figures | {"guidance": arguments.guidance, "target": arguments.target_error})
    return 0


if __name__ == "__main__":
    sys.exit(main())
