"""Times every pass of a flow in relation to its matrix products alone.

    python experiments/benchmarks/flow.py                        # both recorded configurations
    python experiments/benchmarks/flow.py --config tests/goldens/bench/image --json image.json
    python experiments/benchmarks/flow.py --quick                # a tiny flow, seconds

Times forward, forward+backward (with respect to the parameters), the learned denoiser, and the sequential and Jacobi
inverses, plain and guided, with random weights; batch 4, text 32 x 128. Each time is also given as a ratio to a lower
bound in the same run ("floor"): bare matrix products of the same shapes (bare_products.py, causal attention counted
once) and, for inverses, the reading of all weights and of the filled part of the cache in every network evaluation,
if that takes longer (bare_inverse.py). "bound" says whether bandwidth or arithmetic limits a pass. Compilation is not
included. The comparison with the PyTorch original is in against_original.py; figures are in docs/cpu_performance.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from bare_inverse import Reading, evaluations_of
from flow_operations import PARALLEL, RECORDED, SQUARE, TINY, TINY_SIZES, Sizes, bound, original_arguments
from flow_passes import FlowPasses
from timing import best_seconds, compiled, square_product

from starflow_jax.core.figures import write_json
from starflow_jax.porting import flow_config


def measure(name: str, passes: FlowPasses, multiply: Callable[[], Any], rounds: int, threads: int) -> dict[str, Any]:
    """One row of the table, all in seconds: a compiled pass and its floor."""
    function, arguments = passes.run(name)
    run, compile_seconds = compiled(function, *arguments)
    programs = {"flow": run, "product": multiply}
    line: dict[str, Any] = {"pass": name, "compile": compile_seconds, "bound": "arithmetic"}
    if name in PARALLEL:
        floor = passes.floor(name)
    else:
        result = run()
        chunks = passes.chunks(name, result)
        floor = passes.inverse_floor(chunks)
        line["multiply_adds"], values = passes.inverse_work(chunks)
        programs["read"] = Reading(evaluations_of(chunks), values, threads)
        line["evaluations"], line["chunks"] = int(result.evaluations), len(chunks)
        line["converged"], line["tokens"] = bool(result.converged), sum(int(r.lengths.sum()) for r in result.reports)
    programs["products"], _ = compiled(floor[0], *floor[1])
    seconds = best_seconds(programs, rounds=rounds)
    read = seconds.get("read", 0.0)
    line |= {"seconds": seconds["flow"], "products": seconds["products"], "floor": max(seconds["products"], read)}
    line["ratio"] = line["seconds"] / line["floor"]
    if "read" in seconds:
        line |= {"read": read, "bound": bound(read, line["multiply_adds"], seconds["product"])}
    return line


def table(name: str, lines: list[dict[str, Any]], product: float) -> str:
    """The rows as text; `product`: seconds of the 1024^3 product on this machine."""
    rows = [["pass", "flow s", "floor s", "ratio", "bound", "compile s", "evaluations"]]
    for line in lines:
        summary = f"{line['evaluations']} in {line['chunks']} chunks" if "chunks" in line else ""
        summary += "" if line.get("converged", True) else " (not converged)"
        row = [line["pass"], *(f"{line[k]:.3f}" for k in ("seconds", "floor"))]
        rows.append([*row, f"{line['ratio']:.2f}", line["bound"], f"{line['compile']:.1f}", summary])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head = f"{name}: 1024^3 float32 product {product:.4f} s"
    return "\n".join([head, *("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)])


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", metavar="DIR", action="append", help="folder with a config.json (repeatable)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each program, of which the best counts")
    parser.add_argument("--threads", type=int, default=2, help="threads that read, where reading is the floor")
    parser.add_argument("--only", default="", metavar="NAME", help="passes whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a tiny flow once: shows that everything runs")
    options = parser.parse_args(arguments)
    if options.quick:
        configurations, rounds, sizes = {"tiny": flow_config(TINY)}, 1, TINY_SIZES
    else:
        folders = [Path(d) for d in options.config or (RECORDED / "image", RECORDED / "video")]
        configurations = {d.name: flow_config(original_arguments(d)) for d in folders}
        rounds, sizes = options.rounds, Sizes()
    multiply = square_product(SQUARE)
    results = {}
    for name, config in configurations.items():
        passes = FlowPasses(config, sizes)
        product = best_seconds({"product": multiply}, rounds=5 * rounds)["product"]
        names = [one for one in passes.names if options.only in one]
        if options.quick:
            names = [one for one in names if "jacobi" not in one or one == "jacobi 16"]
        lines = [measure(one, passes, multiply, rounds, options.threads) for one in names]
        # It is timed before and after, so that temporary load is not mistaken for a slow machine.
        product = min(product, best_seconds({"product": multiply}, rounds=5 * rounds)["product"])
        print(table(name, lines, product), end="\n\n", flush=True)
        results[name] = {"product_1024": product, "passes": lines}
    if options.json:
        versions = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        write_json(options.json, {**versions, "baseline": "bare products", "configs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
