"""Finds the fastest block sizes of the attention kernels on this device, in comparison with those of `tiling`.

    python experiments/benchmarks/tune_attention.py --slots 1152 --json tiles.json
    python experiments/benchmarks/tune_attention.py --slots 33646 --heads 8 --batch 1

The forward pass and the pass with gradients are timed over a small grid of block sizes; the best of several rounds is
reported. Pass the result to `attention(..., tiles=...)`, or put it into the constants of
`kernels/attention/block_sizes.py` (TPUs) and `kernels/attention/gpu_blocks.py` (GPUs). The file of --json is written
after every choice of block sizes, so that a run that is stopped leaves those that it has timed. `--interpret` runs the
TPU kernels with tiny shapes on a CPU, as a test of this script.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from starflow_jax.core.figures import text_table, write_json
from starflow_jax.experiments.benchmarks.attention import Shape, arrays, with_gradient
from starflow_jax.experiments.benchmarks.timing import best_seconds, compiled
from starflow_jax.kernels.attention import Causal, attention
from starflow_jax.kernels.attention.block_sizes import Tiles, chip_name, tiles_for
from starflow_jax.kernels.kernel_choice import Target, device_target


def candidates(target: Target, shape: Shape, interpret: bool) -> tuple[Any, list[Any]]:
    """The block sizes that the cost model of `tiling` chooses, and all block sizes that are tried."""
    if target.platform == "gpu":
        from starflow_jax.kernels.attention.gpu_blocks import BLOCKS, Blocks

        default = BLOCKS[shape.dim]
        grid = itertools.product((64, 128), (64, 128), (2, 3, 4))
        return default, [default, *(Blocks(q, k, stages, 64, 64, min(stages, 3)) for q, k, stages in grid)]
    most = 128 if interpret else max(128, min(1024, -(-shape.slots // 128) * 128))
    model = tiles_for(Causal(), shape.queries, shape.slots, shape.heads, shape.dim, 2, chip_name(target.kind))
    sizes = sorted({min(size, most) for size in (128, 256, 384, 512, 640, 768, 1024)})
    candidates_list = [model]
    for size, together in itertools.product(sizes, (1, 2, 4, 8)):
        if size * size * together <= 1024 * 1024 and shape.heads % together == 0:
            candidates_list.append(Tiles(size, size, together, min(size, 768), min(size, 768), together, model.memory))
    return model, candidates_list


def measure(
    shape: Shape, target: Target, rounds: int, interpret: bool, on_choice: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Seconds for every choice of block sizes, forward and with gradients, or the reason why it does not compile.

    `on_choice` is called with the results so far after every choice.
    """
    query, key, value, gradient = arrays(shape)
    model, choices = candidates(target, shape, interpret)
    if interpret:
        choices = choices[:2]
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for tiles in choices:
        attend = functools.partial(
            attention, visibility=Causal(), implementation="pallas", target=target, tiles=tiles, interpret=interpret
        )

        def forward(query, key, value, attend=attend):
            return attend(query, key, value)

        def both(query, key, value, gradient, attend=attend):
            return with_gradient(lambda q, k, v, _: attend(q, k, v), query, key, value, gradient, jnp.int32(0))

        row: dict[str, Any] = {"tiles": dataclasses.asdict(tiles), "chosen": tiles == model}
        try:
            programs = {
                "forward": compiled(forward, query, key, value)[0],
                "both": compiled(both, query, key, value, gradient)[0],
            }
            row |= best_seconds(programs, rounds=rounds)
        except Exception as error:  # block sizes that do not fit are also a result
            row["reason"] = str(error).splitlines()[0][:160]
        rows.append(row)
        result = {"shape": dataclasses.asdict(shape), "complete": len(rows) == len(choices), "choices": rows}
        on_choice(result)
    return result


def table(result: dict[str, Any]) -> str:
    """All choices as text, sorted by time with gradients."""
    rows = [["blocks", "forward ms", "with gradients ms", ""]]
    for row in sorted(result["choices"], key=lambda row: row.get("both", float("inf"))):
        blocks = " ".join(str(size) for name, size in row["tiles"].items() if name != "memory")
        times = [f"{1e3 * row[name]:.3f}" if name in row else "-" for name in ("forward", "both")]
        rows.append([blocks, *times, row.get("reason", "the model's" if row["chosen"] else "")])
    return text_table(rows)


def main(arguments: list[str] | None = None) -> int:
    """Runs the search and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("batch", 8), ("heads", 48), ("dim", 64), ("slots", 1152), ("rounds", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--interpret", action="store_true", help="two choices for a TPU, on any device, slowly")
    options = parser.parse_args(arguments)
    for name in ("batch", "heads", "dim", "slots", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    target = Target("tpu", "TPU v5e") if options.interpret else device_target()
    if target.platform == "cpu":
        parser.error("there is no kernel for CPUs to tune; --interpret shows that this runs")
    shape = Shape("tuned", options.batch, options.heads, options.dim, options.slots, options.slots, True)

    def write(result: dict[str, Any]) -> None:
        if options.json is not None:
            write_json(options.json, {"device": jax.devices()[0].device_kind, **result})

    result = measure(shape, target, options.rounds, options.interpret, write)
    print(f"{jax.devices()[0].device_kind}\n\n{table(result)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
