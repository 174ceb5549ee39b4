"""How much faster is sequential inversion with quantised weights, which it reads once for every token?

    python experiments/benchmarks/quantised.py --json quantised.json   # 201 MB of float32 weights, on any backend
    python experiments/benchmarks/quantised.py --quick                 # a tiny flow, as a test of this script

One block of `--layers` layers, `--width` wide, is inverted token by token (`solvers.Sequential`) with random weights,
whose float32 form is larger than a cache of the processor. Every form of the weights inverts the same noise in the same
run, one after the other in every round; the shortest time counts. "of float32" is the time of the float32 flow divided
by that of the row, and the error the largest difference of its samples from the float32 flow's, over their standard
deviation.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.experiments.benchmarks.timing import best_seconds
from starflow_jax.flows.parameters import Params, abstract, merge, num_bytes, ready
from starflow_jax.solvers import Sequential, inverse
from starflow_jax.training.checkpoints.quantised_streams import quantised_params

# The first one is the baseline.
FORMS = ("float32", "bfloat16", "int8", "int8-activations", "fp8", "int4")


def flow_config(width: int, layers: int, side: int) -> FlowConfig:
    """One block on tokens of a square image."""
    return FlowConfig(
        family="tarflow",
        channels=4,
        image_size=side,
        width=width,
        num_blocks=1,
        layers_per_block=layers,
        head_dim=64 if width % 64 == 0 else width,
    )


def random_params(config: FlowConfig) -> Params:
    """Parameters of the float32 flow: kernels normal, of a standard deviation that keeps hidden states of order 1."""
    rng = np.random.default_rng(0)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        names = [str(part.key) for part in path]
        if names[-1] == "kernel":
            inputs = leaf.shape[1 if "layers" in names else 0]
            gain = 0.1 if "proj_out" in names else 0.5
            return rng.standard_normal(leaf.shape, np.float32) * np.float32(gain * inputs**-0.5)
        ones = names[-1] == "weight" or names[-1] == "prior_variance"
        return np.ones(leaf.shape, np.float32) if ones else np.zeros(leaf.shape, np.float32)

    params: Params = jax.tree_util.tree_map_with_path(fill, abstract(config)[1])
    return params


def inverted(config: FlowConfig, params: Params, noise: jax.Array) -> Callable[[], jax.Array]:
    """A compiled inversion of the noise, bound to parameters that were made ready before."""
    definition = abstract(config)[0]
    made = jax.jit(functools.partial(ready, definition))(jax.tree.map(jnp.asarray, params))

    def run(params: Params, noise: jax.Array) -> jax.Array:
        samples: jax.Array = inverse(merge(definition, params), noise, solver=Sequential()).x
        return samples

    program = jax.jit(run).lower(made, noise).compile()
    return lambda: jax.block_until_ready(program(made, noise))


def measure(
    config: FlowConfig, params: Params, batch: int, rounds: int, forms: Sequence[str] = FORMS
) -> list[dict[str, Any]]:
    """A row of results for every form of the weights, the first of which is float32."""
    noise = jax.random.normal(jax.random.key(1), (batch, *config.image_shape, config.channels))
    programs, sizes = {}, {}
    for form in forms:
        if form in ("float32", "bfloat16"):
            held, own = params, dataclasses.replace(config, dtype=form)
        else:
            own = dataclasses.replace(config, quantise=form)
            held = quantised_params(own, params)
        programs[form] = inverted(own, held, noise)
        sizes[form] = num_bytes(held) // (2 if form == "bfloat16" else 1)
    samples = {form: np.asarray(run()) for form, run in programs.items()}
    seconds = best_seconds(programs, rounds=rounds)
    exact = samples[forms[0]]
    return [
        {
            "form": form,
            "batch": batch,
            "bytes": sizes[form],
            "seconds": seconds[form],
            "of_float32": seconds[forms[0]] / seconds[form],
            "error": float(np.abs(samples[form] - exact).max() / exact.std()),
        }
        for form in forms
    ]


def table(lines: list[dict[str, Any]], tokens: int) -> str:
    """The results as text."""
    rows = [["batch", "weights", "MB", "ms a token", "of float32", "error"]]
    for line in lines:
        rows.append(
            [
                str(line["batch"]),
                line["form"],
                f"{line['bytes'] / 1e6:.4g}",
                f"{1e3 * line['seconds'] / tokens:.3g}",
                f"{line['of_float32']:.2f} x",
                f"{line['error']:.1e}",
            ]
        )
    return text_table(rows)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024, help="channels (default 1024)")
    parser.add_argument("--layers", type=int, default=4, help="of the block (default 4)")
    parser.add_argument("--side", type=int, default=8, help="tokens along a side of the image (default 8)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="rows, one table part each (default 1 4)")
    parser.add_argument("--forms", nargs="+", choices=FORMS[1:], default=FORMS[1:], help="beside float32 (default all)")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each program, the best counts (default 4)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--quick", action="store_true", help="a tiny flow, two short runs")
    options = parser.parse_args(arguments)
    for name in ("width", "layers", "side", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be an integer >= 1, got {getattr(options, name)}")
    if min(options.batch) < 1:
        parser.error(f"--batch must be integers >= 1, got {options.batch}")
    config = flow_config(*((16, 1, 2) if options.quick else (options.width, options.layers, options.side)))
    params = random_params(config)
    batches, rounds = ([1], 1) if options.quick else (options.batch, options.rounds)
    lines = [line for batch in batches for line in measure(config, params, batch, rounds, (FORMS[0], *options.forms))]
    kind = jax.devices()[0].device_kind
    tokens = config.grid[0] * config.grid[1]
    print(f"jax {jax.__version__}, {kind}; {tokens} tokens in sequence; baseline of the same run: float32\n")
    print(table(lines, tokens))
    if options.json:
        write_json(options.json, {"jax": jax.__version__, "device": kind, "tokens": tokens, "lines": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
