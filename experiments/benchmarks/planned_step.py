"""Times the programs that `starflow plan` predicts, on one device, in comparison with the plan.

    starflow plan --config experiments/starflow_3b_t2i.py --topology h100:1 --program all --json plan.json \\
        $(python experiments/benchmarks/planned_step.py --print-overrides)
    python experiments/benchmarks/planned_step.py --plan plan.json --json step.json
    python experiments/benchmarks/planned_step.py --quick        # a tiny flow, as a test of this script

The model has the width of the 3B image model and one block of a few layers: a training step, and one guided Jacobi
iteration of the block's last chunk. The programs are those of `planning.programs`; their arguments are random values,
which affects neither time nor memory. "of product" is the ratio of the step's model FLOP/s to those of the fastest
bfloat16 product of large matrices in the same run. The plan's times are estimates from published peaks: "hidden" is a
lower bound and "exposed" adds up everything without overlap.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from starflow_jax.core.config import load_config
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.costs.flops import Work, model_flops
from starflow_jax.experiments.benchmarks.timing import compiled
from starflow_jax.planning.estimate import inverse_flops
from starflow_jax.planning.plan_request import PlanRequest
from starflow_jax.planning.programs import inverse_program, training_program
from starflow_jax.solvers import Jacobi

EXPERIMENT = str(Path(__file__).parent.parent / "starflow_3b_t2i.py")
# The argument of both programs whose buffers are donated: the training state, the state of the solver.
_DONATED = 2


def overrides(layers: int, batch: int) -> list[str]:
    """Fields of the experiment that differ, as NAME=VALUE: one block, a batch for one device."""
    return ["flow.num_blocks=1", f"flow.layers_per_block=({layers},)", f"train.batch_size={batch}"]


def random_like(tree: Any) -> Any:
    """The tree with small positive random values in the place of ShapeDtypeStructs; integers are 1."""
    leaves, structure = jax.tree.flatten(tree)
    keys = iter(jax.random.split(jax.random.key(0), len(leaves)))

    def fill(leaf: Any) -> Any:
        key = next(keys)
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.ones(leaf.shape, leaf.dtype)
        return (0.02 * jnp.abs(jax.random.normal(key, leaf.shape))).astype(leaf.dtype)

    return jax.tree.unflatten(structure, [fill(leaf) for leaf in leaves])


def product(size: int) -> Any:
    """A compiled bfloat16 product of two square matrices with float32 sums."""
    left, right = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    return compiled(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32), left, right)[0]


def measure(config: ExperimentConfig, program: str, work: Work, rounds: int, size: int) -> dict[str, Any]:
    """Seconds of a training step or of one Jacobi iteration, and of a product of `size` x `size` matrices.

    Both take turns, the shortest time of several rounds counts, and the first round does not.
    """
    training = program == "train"
    planned = training_program(config, work, None) if training else inverse_program(config, work, None)
    arguments = list(random_like(planned.arguments))
    if not training:
        grid = work.tokens
        arguments[3] = jnp.int32(Jacobi(growth=8).plan(grid, 0, work.frame)[-1].first)
    kept = arguments[_DONATED]
    run_product, best, best_product, evaluations = product(size), float("inf"), float("inf"), 1
    peak = None
    for index in range(rounds + 1):
        # A solver starts from the same state in every round; training continues from the last one.
        arguments[_DONATED] = kept if training else jax.tree.map(jnp.copy, kept)
        jax.block_until_ready(arguments)
        start = time.perf_counter()
        result, report = jax.block_until_ready(planned.function(*arguments))
        seconds = time.perf_counter() - start
        if training:
            kept = result
        else:
            evaluations = max(int(report.evaluations), 1)
        statistics = jax.devices()[0].memory_stats() or {}
        peak = statistics.get("peak_bytes_in_use", peak)
        start = time.perf_counter()
        run_product()
        if index:
            best, best_product = min(best, seconds / evaluations), min(best_product, time.perf_counter() - start)
    flops = model_flops(config.flow, work) if training else inverse_flops(config, work)
    return {
        "program": program,
        "batch": work.batch,
        "layers": config.flow.blocks[0].layers,
        "seconds": best,
        "evaluations": evaluations,
        "peak_bytes": peak if training else None,  # copies of the solver's state are no part of its program
        "model_flops": flops,
        "tflops": flops / best / 1e12,
        "product_tflops": 2.0 * size**3 / best_product / 1e12,
        "of_product": flops / best * best_product / (2.0 * size**3),
    }


def against_plan(line: dict[str, Any], plans: list[dict[str, Any]]) -> dict[str, Any]:
    """The measured time and memory divided by those of the plan of the same program; empty without one."""
    plan = next((plan for plan in plans if plan["program"] == line["program"]), None)
    if plan is None:
        return {}
    if plan["batch"] != line["batch"]:
        raise ValueError(f"--plan must have the batch {line['batch']} of this run, got {plan['batch']}")
    times = {estimate["name"]: line["seconds"] / estimate["seconds"] for estimate in plan["estimates"]}
    result: dict[str, Any] = {"topology": plan["topology"], "source": plan["source"], "time": times}
    if line["peak_bytes"]:
        result["memory"] = line["peak_bytes"] / plan["memory"]["peak"]
    return result


def table(lines: list[dict[str, Any]]) -> str:
    """The results as text."""
    rows = [["program", "ms", "TFLOP/s", "of product", "of the plan's time", "of its memory"]]
    for line in lines:
        ratios = line.get("plan", {})
        times = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in ratios.get("time", {}).items())
        memory = f"{ratios['memory']:.2f}x" if "memory" in ratios else "-"
        rows.append([
            {"train": "training step", "inverse": "Jacobi iteration"}[line["program"]], f"{1e3 * line['seconds']:.3f}",
            f"{line['tflops']:.4g}", f"{line['of_product']:.0%}", times or "-", memory,
        ])  # fmt: skip
    return text_table(rows)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", choices=("train", "inverse", "all"), default="all", help="what is timed")
    parser.add_argument("--layers", type=int, default=4, help="of the block (default 4)")
    parser.add_argument("--batch", type=int, default=8, help="images of the training step (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program, the best counts")
    parser.add_argument("--plan", metavar="FILE", type=Path, help="JSON of `starflow plan`, the baseline")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--quick", action="store_true", help="a tiny flow, two rounds")
    parser.add_argument("--print-overrides", action="store_true", help="print the plan's options and end")
    options = parser.parse_args(arguments)
    for name in ("layers", "batch", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be an integer >= 1, got {getattr(options, name)}")
    fields = overrides(1 if options.quick else options.layers, options.batch)
    if options.print_overrides:
        print(" ".join(f"--config.{field}" for field in fields))
        return 0
    try:
        plans = [] if options.plan is None else json.loads(options.plan.read_text(encoding="utf-8"))["plans"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"--plan must name the JSON of `starflow plan`, got {options.plan}: {error}")
    config = load_config(f"{EXPERIMENT}:tiny" if options.quick else EXPERIMENT, fields)
    work = PlanRequest(config, "h100:1").works[0]
    rounds, size = (1, 256) if options.quick else (options.rounds, 8192)
    lines = []
    for program in ("train", "inverse") if options.program == "all" else (options.program,):
        part = work if program == "train" else dataclasses.replace(work, batch=1)
        line = measure(config, program, part, rounds, size)
        lines.append({**line, "plan": against_plan(line, plans)})
    kind = jax.devices()[0].device_kind
    baseline = "the plan, and " if plans else ""
    print(f"jax {jax.__version__}, {kind}; baselines: {baseline}a product of {size} x {size} of the same run\n")
    print(table(lines))
    if options.json:
        write_json(options.json, {"jax": jax.__version__, "device": kind, "lines": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
