"""Times every pass of a flow in relation to its matrix products alone.

    python experiments/benchmarks/flow.py                        # both recorded configurations
    python experiments/benchmarks/flow.py --config tests/goldens/bench/image --json image.json
    python experiments/benchmarks/flow.py --quick                # a tiny flow, seconds

Times forward, forward+backward (with respect to the parameters), and the sequential and Jacobi inverses, plain and
guided, with random weights; batch 4, text 32 x 128. Each time is also given as a ratio to that of bare matrix products
of the same shapes in the same run ("floor", see bare_products.py). The floors of forward and forward+backward include
every dense layer and unmasked attention; those of the inverses include the dense layers of all network evaluations, but
no attention. Compilation is not included. For the two configurations on which the PyTorch original was timed, its time
is scaled to this machine by a 1024^3 float32 product on both machines.

Expected on 2 CPU cores: forward+backward below 1.6 times its floor, the sequential inverse below 3 times its floor.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bare_products import (
    backward_products,
    block_shapes,
    evaluation_products,
    forward_products,
    parallel_operands,
    random_weights,
)
from timing import best_seconds, compiled, square_product

from starflow_jax.core.config import FlowConfig
from starflow_jax.flows import Guidance, objective
from starflow_jax.flows.order import Grid
from starflow_jax.flows.parameters import initialise, merge
from starflow_jax.porting import flow_config
from starflow_jax.solvers import Inversion, Jacobi, Sequential, inverse

_RECORDED = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "bench"
_BATCH, _TEXT, _FRAMES, _GUIDANCE = 4, 32, 5, 2.0

# Median seconds of the PyTorch original on two cores (2 threads, float32) that took 0.009 s for XLA's 1024^3 product.
_ORIGINAL_PRODUCT = 0.009
_ORIGINAL = {
    "image": {
        "forward": 0.235, "forward+backward": 0.556, "sequential": 2.44, "sequential guided": 2.55,
        "jacobi 16": 1.01, "jacobi 16 guided": 1.87, "jacobi 32": 0.77, "jacobi 32 guided": 1.41,
    },
    "video": {
        "forward": 0.252, "forward+backward": 0.673, "sequential": 2.27, "sequential guided": 3.10,
        "jacobi 16": 0.98, "jacobi 16 guided": 1.61, "jacobi 32": 0.90, "jacobi 32 guided": 1.49,
    },
}  # fmt: skip

_TINY = FlowConfig(
    channels=2, image_size=4, width=40, num_blocks=2, layers_per_block=(1, 2), head_dim=20, rope=True, sos=True,
    text_dim=6, text_length=3, cond_top_only=True, scale="softplus", final_norm=True, soft_clip=4.0, order="L2R",
)  # fmt: skip


class FlowBenchmark:
    """The passes of one configuration and their floors.

    Attributes:
      config: of the flow. rounds: runs of each program (the best is used). size: batch rows, text tokens, frames.
    """

    def __init__(self, config: FlowConfig, *, rounds: int, batch: int, text: int):
        self.config, self.rounds, self.batch = config, rounds, batch
        frames = _FRAMES if config.temporal_causal else None
        keys = jax.random.split(jax.random.key(0), 8)
        shape = (batch, *([frames] if frames else []), *config.image_shape, config.channels)
        self.grid = Grid.from_shape(config, shape)
        self.x = jax.random.normal(keys[0], shape)
        self.text = jax.random.normal(keys[1], (batch, text, config.text_dim)) if config.text_dim else None
        self.definition, params = initialise(config, keys[2])
        # Output projections are small but not zero: the map is well conditioned, and Jacobi needs several iterations.
        for i, block in enumerate(params["blocks"].values()):
            kernel = block["proj_out"]["kernel"]
            block["proj_out"]["kernel"] = 0.02 * jax.random.normal(jax.random.fold_in(keys[3], i), kernel.shape)
        self.params = params
        self.shapes = block_shapes(config, batch, frames, self.grid.frame, text if config.text_dim else 0)
        split = jax.random.split(keys[4], len(self.shapes))
        self.weights = [random_weights(s, k) for s, k in zip(self.shapes, split, strict=True)]
        self.operands = [parallel_operands(s, k) for s, k in zip(self.shapes, split, strict=True)]

    def forward(self, params, x, text):
        """The flow's parallel pass."""
        out = merge(self.definition, params).forward(x, text)
        return out.z, out.logdet

    def gradients(self, params, x, text):
        """Loss and its gradients with respect to every parameter."""
        return jax.value_and_grad(lambda p: objective(merge(self.definition, p).forward(x, text)).loss)(params)

    def forward_floor(self, weights, operands):
        """The products of `forward`."""
        return [forward_products(*of_block) for of_block in zip(self.shapes, weights, operands, strict=True)]

    def gradients_floor(self, weights, operands):
        """The products of `gradients`."""
        backward = [backward_products(*of_block) for of_block in zip(self.shapes, weights, operands, strict=True)]
        return self.forward_floor(weights, operands), backward

    def line(self, name: str, run, compile_seconds: float, floor, floor_arguments) -> dict[str, Any]:
        """One row of the table, all in seconds: a compiled pass and its floor."""
        run_floor, _ = compiled(floor, *floor_arguments)
        seconds = best_seconds({"flow": run, "floor": run_floor}, rounds=self.rounds)
        return {
            "pass": name,
            "seconds": seconds["flow"],
            "floor": seconds["floor"],
            "ratio": seconds["flow"] / seconds["floor"],
            "compile": compile_seconds,
        }

    def parallel(self) -> list[dict[str, Any]]:
        """The rows of forward and forward+backward."""
        arguments, bare = (self.params, self.x, self.text), (self.weights, self.operands)
        return [
            self.line("forward", *compiled(self.forward, *arguments), self.forward_floor, bare),
            self.line("forward+backward", *compiled(self.gradients, *arguments), self.gradients_floor, bare),
        ]

    def inversion(self, name: str, solver: Sequential | Jacobi, guided: bool) -> dict[str, Any]:
        """The row of one inverse; its floor is the dense products of its network evaluations."""

        def invert(params, z, text) -> Inversion:
            guidance = None
            if guided:
                guidance = Guidance(_GUIDANCE, jnp.zeros_like(text), deep_only=self.config.cond_top_only)
            return inverse(merge(self.definition, params), z, text, solver=solver, guidance=guidance)

        run, compile_seconds = compiled(invert, self.params, self.x, self.text)
        result = run()
        evaluated = self.evaluated(result, guided)
        keys = jax.random.split(jax.random.key(1), len(evaluated))
        tokens = [
            jax.random.normal(key, (rows, self.config.token_channels))
            for key, (_, rows, _) in zip(keys, evaluated, strict=True)
        ]

        def floor(weights, tokens):
            return [
                evaluation_products(weights[index], given, count)
                for given, (index, _, count) in zip(tokens, evaluated, strict=True)
            ]

        line = self.line(name, run, compile_seconds, floor, (self.weights, tokens))
        line["evaluations"] = int(result.evaluations)
        line["chunks"] = sum(len(report.starts) for report in result.reports)
        line["converged"] = bool(result.converged)
        line["tokens"] = sum(int(report.lengths.sum()) for report in result.reports)
        return line

    def evaluated(self, result: Inversion, guided: bool) -> list[tuple[int, int, int]]:
        """(index among blocks with layers, rows = sequences x tokens, evaluations) of every kind of evaluation."""
        with_layers = [i for i, c in enumerate(self.config.blocks) if c.layers]
        kinds = []
        for report in result.reports:
            index = with_layers.index(report.block)
            doubled = guided and (self.config.is_conditioned(report.block))
            at_once = report.tokens // report.evaluations  # constant for each kind of chunk
            for size in np.unique(at_once):
                count = report.evaluations[at_once == size].sum()
                kinds.append((index, int(size) * (2 if doubled else 1), int(count)))
        return kinds

    def run(self, name_part: str) -> list[dict[str, Any]]:
        """The rows of every pass whose name contains `name_part`."""
        lines = self.parallel() if "forward".startswith(name_part) or name_part.startswith("forward") else []
        solvers: list[tuple[str, Sequential | Jacobi]] = [("sequential", Sequential())]
        solvers += [(f"jacobi {size}", Jacobi(block=size)) for size in (16, 32)]
        for name, solver in solvers:
            for guided in (False, True) if self.text is not None else (False,):
                full = f"{name} guided" if guided else name
                if name_part in full:
                    lines.append(self.inversion(full, solver, guided))
        return lines


def table(name: str, lines: list[dict[str, Any]], product: float) -> str:
    """The rows as text; `product`: seconds of the 1024^3 product on this machine."""
    original = _ORIGINAL.get(name, {})
    titles = ["pass", "flow s", "floor s", "ratio", "compile s", "evaluations"]
    rows = [titles + (["original s, scaled", "original / flow"] if original else [])]
    for line in lines:
        summary = f"{line['evaluations']} in {line['chunks']} chunks" if "chunks" in line else ""
        summary += "" if line.get("converged", True) else " (not converged)"
        row = [line["pass"], *(f"{line[k]:.3f}" for k in ("seconds", "floor"))]
        row += [f"{line['ratio']:.2f}", f"{line['compile']:.1f}", summary]
        if line["pass"] in original:
            line["original"] = original[line["pass"]] * product / _ORIGINAL_PRODUCT
            row += [f"{line['original']:.3f}", f"{line['original'] / line['seconds']:.2f}"]
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head = f"{name}: 1024^3 float32 product {product:.4f} s"
    return "\n".join([head, *("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)])


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", metavar="DIR", action="append", help="folder with a config.json (repeatable)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each program, of which the best counts")
    parser.add_argument("--only", default="", metavar="NAME", help="passes whose name contains this")
    parser.add_argument("--quick", action="store_true", help="a tiny flow once: shows that everything runs")
    options = parser.parse_args(arguments)
    if options.quick:
        configurations, rounds, batch, text = {"tiny": _TINY}, 1, 2, 3
    else:
        folders = [Path(d) for d in options.config or (_RECORDED / "image", _RECORDED / "video")]
        configurations = {d.name: flow_config(json.loads((d / "config.json").read_text())) for d in folders}
        rounds, batch, text = options.rounds, _BATCH, _TEXT
    multiply = square_product(1024)
    results = {}
    for name, config in configurations.items():
        benchmark = FlowBenchmark(config, rounds=rounds, batch=batch, text=text)
        product = best_seconds({"product": multiply}, rounds=5 * rounds)["product"]
        lines = benchmark.run(options.only)
        # It is timed before and after, so that temporary load is not mistaken for a slow machine.
        product = min(product, best_seconds({"product": multiply}, rounds=5 * rounds)["product"])
        print(table(name, lines, product), end="\n\n", flush=True)
        results[name] = {"product_1024": product, "passes": lines}
    if options.json:
        versions = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        options.json.write_text(json.dumps({**versions, "baseline": "bare products", "configs": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
