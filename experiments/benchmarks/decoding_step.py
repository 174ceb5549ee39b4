"""Is decoding bound by kernel launches or by memory? Times a network evaluation of a chunk against reading its inputs.

    python experiments/benchmarks/decoding_step.py --json step.json      # layers of the 3B model's deep block
    python experiments/benchmarks/decoding_step.py --quick               # tiny layers, as a test of this script

A step is what a solver does for every chunk or iteration: the layers on `chunk` tokens with a cache, the prediction and
the Jacobi update (`flows.block`, `kernels.jacobi_update`); many steps run in one compiled loop on the device. A step
must read all weights and the cache once. "floor" is the time of copying half as many bytes in the same run, which moves
the same number of bytes. If "of floor" is near 100 %, memory is the limit, and fusing the layers into one kernel cannot
help. If it is far below, the remaining time divided by the operations that the compiled loop starts ("us per
operation")
is the cost of a launch, which a fused decoding step could save.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from starflow_jax.core.config import load_config
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.experiments.benchmarks.timing import best_seconds
from starflow_jax.flows.block import AutoregressiveBlock
from starflow_jax.flows.order import Grid
from starflow_jax.nn.ready_parameters import ready_for_inference
from starflow_jax.planning.hlo import parse

EXPERIMENT = str(Path(__file__).parent.parent / "starflow_3b_t2i.py")
CHUNKS = (1, 16, 64, 256)
# Instructions that are not counted: those without computation, and loops, whose bodies are counted instead.
_NO_OPERATION = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call", "conditional")


def deep_block(layers: int, quick: bool) -> FlowConfig:
    """A flow of one block with `layers` layers of the released deep block, or of the tiny variant if `quick`."""
    experiment = f"{EXPERIMENT}:tiny" if quick else EXPERIMENT
    sizes = ["flow.num_blocks=1", f"flow.layers_per_block=({layers},)"]
    return load_config(experiment, sizes).flow


def compiled_steps(
    config: FlowConfig, batch: int, chunk: int, steps: int
) -> tuple[jax.stages.Compiled, tuple[Any, ...]]:
    """A compiled loop over `steps` chunks, and its arguments."""
    graph, params = nnx.split(ready_for_inference(AutoregressiveBlock(config, 0, jax.random.key(0))))
    words = jnp.dtype(config.dtype)
    rows, columns = config.grid
    grid = Grid(None, rows, columns)
    text = jnp.zeros((batch, config.text_length, config.text_dim), words)
    tokens = jax.random.normal(jax.random.key(1), (batch, grid.tokens + 1, config.token_channels))
    span = jnp.tile(jnp.asarray([[0, chunk]], jnp.int32), (batch, 1))

    def run(params, text, tokens):
        predict, cache = nnx.merge(graph, params).predictor(text, grid, batch)

        def step(index, carry):
            tokens, cache, total = carry
            # Chunks are taken from the end of the sequence, where the cache is longest.
            first = grid.tokens - chunk * (1 + index % max(grid.tokens // (4 * chunk), 1))
            before = jax.lax.dynamic_slice_in_dim(tokens, first, chunk, axis=1)
            prediction, cache = predict(before, first, cache)
            x, sums = prediction.update(before, before, span)
            return jax.lax.dynamic_update_slice_in_dim(tokens, x, first + 1, axis=1), cache, total + sums

        return jax.lax.fori_loop(0, steps, step, (tokens, cache, jnp.zeros((batch, 2))))[::2]

    arguments = (params, text, tokens)
    return jax.jit(run).lower(*arguments).compile(), arguments


def operations(program: jax.stages.Compiled) -> int:
    """The number of operations that a compiled program launches (a fusion counts as one)."""
    parsed = parse(program.as_text())
    inside = parsed.callers()
    return sum(
        times * sum(line.opcode not in _NO_OPERATION for line in parsed.computations[name].values())
        for name, times in parsed.times().items()
        if name not in inside
    )


def measure(config: FlowConfig, batch: int, chunk: int, steps: int, rounds: int) -> dict[str, Any]:
    """The results for one chunk size."""
    (long, arguments), (short, _) = (compiled_steps(config, batch, chunk, count) for count in (2 * steps, steps))
    transformer = config.blocks[0]
    slots = config.text_length + math.prod(config.grid)
    cache = 2 * transformer.layers * batch * transformer.kv_heads * transformer.head_dim * slots
    word = jnp.dtype(config.dtype).itemsize
    read = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(arguments[0])) + cache * word
    # A copy reads and writes, so copying half the bytes moves as many bytes as a step reads.
    source = jnp.ones((max(read // 8, 1),))
    copy = jax.jit(lambda a, by: a + by).lower(source, jnp.float32(1)).compile()
    seconds = best_seconds(
        {
            "long": lambda: jax.block_until_ready(long(*arguments)),
            "short": lambda: jax.block_until_ready(short(*arguments)),
            "floor": lambda: jax.block_until_ready(copy(source, jnp.float32(1))),
        },
        rounds=rounds,
    )
    # The pass of the text and the start of the program cancel in the difference.
    step = (seconds["long"] - seconds["short"]) / steps
    if step <= 0:  # too short to measure
        step = math.nan
    started = max(round((operations(long) - operations(short)) / steps), 1)
    return {
        "chunk": chunk,
        "batch": batch,
        "layers": transformer.layers,
        "bytes": read,
        "milliseconds": 1e3 * step,
        "floor_milliseconds": 1e3 * seconds["floor"],
        "of_floor": seconds["floor"] / step,
        "operations": started,
        "microseconds_an_operation": 1e6 * (step - seconds["floor"]) / started,
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The results as text."""
    rows = [["chunk", "layers", "MB read", "step ms", "floor ms", "of floor", "operations", "us per operation"]]
    for line in lines:
        rows.append(
            [
                str(line["chunk"]),
                str(line["layers"]),
                f"{line['bytes'] / 1e6:.4g}",
                f"{line['milliseconds']:.3f}",
                f"{line['floor_milliseconds']:.3f}",
                f"{100 * line['of_floor']:.0f} %",
                str(line["operations"]),
                f"{line['microseconds_an_operation']:.1f}",
            ]
        )
    return text_table(rows)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4, help="of the 24 of the deep block (default 4)")
    parser.add_argument("--batch", type=int, default=2, help="rows; 2 is one guided sample (default)")
    parser.add_argument("--steps", type=int, default=32, help="steps in one timed loop")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each program, the best counts")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--quick", action="store_true", help="tiny layers, two short runs")
    options = parser.parse_args(arguments)
    for name in ("layers", "batch", "steps", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be an integer >= 1, got {getattr(options, name)}")
    config = deep_block(1 if options.quick else options.layers, options.quick)
    chunks, steps, rounds = ((4,), 16, 2) if options.quick else (CHUNKS, options.steps, options.rounds)
    lines = [measure(config, options.batch, chunk, steps, rounds) for chunk in chunks]
    kind = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {kind}; baseline of the same run: reading the same bytes\n")
    print(table(lines))
    if options.json:
        write_json(options.json, {"jax": jax.__version__, "device": kind, "lines": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
