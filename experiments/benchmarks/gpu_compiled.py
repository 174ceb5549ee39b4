"""Compiles the GPU kernels for an H100 that is not attached, and tables what they take of it.

    pip install 'starflow-jax[gpu-compiler]'
    python experiments/benchmarks/gpu_compiled.py --json gpu_compiled.json --markdown gpu_compiled.md

Every kernel goes through Mosaic GPU, XLA and NVIDIA's ptxas for sm_90a: registers of a thread at launch, bytes of
registers that are spilled to memory, shared memory and number of blocks of a launch. Nothing is timed. `--quick`
compiles a small part. The compilers run in a process of their own, since ptxas prints what it has used.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import mlir
from jaxlib.mlir import ir

from starflow_jax.cli.options.outputs import output_file
from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.costs.chips import topology
from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.kernels.attention import Causal, CausalFrames, FrameWindow, Full, Visibility, attention
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.kernel_choice import Target, device_target
from starflow_jax.planning.gpu_compiler import NEEDED, gpu_devices, missing_modules

_CHIP = "h100:1"
_CASE = "compiling case "
_LIMIT_S = 3600


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """A call of attention, with gradients unless it reads a cache of several layers."""

    rule: Visibility
    queries: int
    slots: int
    dim: int
    heads: int = 8
    kv_heads: int = 8
    cached: bool = False

    def program(self, target: Target) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
        """The function, and its arguments."""
        layers = (2,) if self.cached else ()
        query = jax.ShapeDtypeStruct((1, self.heads, self.queries, self.dim), jnp.bfloat16)
        keys = jax.ShapeDtypeStruct((*layers, 1, self.kv_heads, self.slots, self.dim), jnp.bfloat16)
        options = {"visibility": self.rule, "implementation": "pallas", "target": target}
        if self.cached:
            offset = jax.ShapeDtypeStruct((), jnp.int32)
            return lambda q, k, v, n: attention(q, k, v, offset=n, layer=n % 2, **options), [query, keys, keys, offset]

        def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(attention(q, k, v, **options).astype(jnp.float32))

        return jax.grad(total, (0, 1, 2)), [query, keys, keys]

    @property
    def name(self) -> str:
        kind = "a cache" if self.cached else "with gradients"
        heads = f"{self.heads} of {self.dim}" + (f", {self.kv_heads} of keys" if self.kv_heads < self.heads else "")
        return f"{self.rule}, {self.queries:,} queries, {self.slots:,} slots, heads {heads}, {kind}"


@dataclasses.dataclass(frozen=True)
class UpdateCase:
    """A call of the Jacobi update."""

    tokens: int
    channels: int
    head: AffineHead
    dtype: str = "float32"

    def program(self, target: Target) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
        """The function, and its arguments."""
        outputs = self.channels * (1 if self.head.scale == "unit" else 2)
        z = jax.ShapeDtypeStruct((2, self.tokens, self.channels), jnp.float32)
        shapes = [
            jax.ShapeDtypeStruct((2 * self.head.num_passes, self.tokens, outputs), self.dtype), z, z,
            jax.ShapeDtypeStruct((2, 2), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32),
            jax.ShapeDtypeStruct((), jnp.int32),
        ]  # fmt: skip
        return functools.partial(jacobi_update.update, head=self.head, target=target, implementation="pallas"), shapes

    @property
    def name(self) -> str:
        guidance = f", guidance {self.head.guidance}" if self.head.guidance else ""
        return f"{self.tokens:,} tokens of {self.channels}, {self.head.scale}{guidance}, {self.dtype} output"


Case = AttentionCase | UpdateCase
_STARFLOW, _TARFLOW = AffineHead("softplus", 4.0, "ratio"), AffineHead("exp", 0.0, "ab", annealed_tokens=300)
CASES: tuple[Case, ...] = (
    AttentionCase(Causal(), 1152, 1152, 64),
    AttentionCase(Causal(), 1152, 1152, 128),
    AttentionCase(Causal(128), 1153, 1153, 128, 8, 2),
    AttentionCase(CausalFrames(8, 60, 0), 1001, 1001, 64),
    AttentionCase(FrameWindow(128, 880, 2, 10), 18736, 18736, 64),
    AttentionCase(FrameWindow(10, 50, 2, 1), 260, 260, 128, 4, 1),
    AttentionCase(Full(), 333, 333, 128),
    AttentionCase(Causal(), 33646, 33646, 64),
    AttentionCase(Causal(), 1, 8192, 64, 48, 48, cached=True),
    AttentionCase(Causal(), 64, 8192, 64, 48, 48, cached=True),
    AttentionCase(Causal(), 64, 8192, 128, 24, 8, cached=True),
    AttentionCase(Causal(), 512, 8192, 128, 24, 24, cached=True),
    UpdateCase(64, 4, _STARFLOW),
    UpdateCase(1023, 12, _STARFLOW),
    UpdateCase(33390, 48, _STARFLOW, "bfloat16"),
    UpdateCase(300, 48, _TARFLOW),
    UpdateCase(70, 192, AffineHead("softplus", 0.0)),
    UpdateCase(257, 12, AffineHead("unit", 4.0, "b"), "bfloat16"),
)  # fmt: skip
QUICK: tuple[Case, ...] = (CASES[1], CASES[8], CASES[12])


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel as a program launches it: its name, blocks of its grid, threads of a block, bytes of shared memory."""

    kernel: str
    blocks: int
    threads: int
    shared: int


def launches(lowered: Any) -> list[Launch]:
    """The kernels of Mosaic GPU in a lowered program, in order."""
    found: list[Launch] = []
    for operation in _operations(lowered.compiler_ir("stablehlo").operation):
        if operation.name == "stablehlo.custom_call" and '"mosaic_gpu' in str(operation.attributes["call_target_name"]):
            found.append(_launch(operation.attributes["mhlo.backend_config"]["module"].value_bytes))
    return found


def _operations(operation: Any) -> Any:
    for region in operation.regions:
        for block in region:
            for inner in block:
                yield inner.operation
                yield from _operations(inner.operation)


def _launch(module: bytes) -> Launch:
    context = mlir.make_ir_context()
    context.allow_unregistered_dialects = True
    with context:
        parsed = ir.Module.parse(module).operation
        launch = next(operation for operation in _operations(parsed) if operation.name.endswith("gpu.launch"))
        # Sizes of the grid, of a block, and of shared memory; a token that the launch waits for may come first.
        sizes = [_constant(operand) for operand in list(launch.operands)[-7:]]
        name = ir.StringAttr(parsed.attributes["sym_name"]).value
    return Launch(name, sizes[0] * sizes[1] * sizes[2], sizes[3] * sizes[4] * sizes[5], sizes[6])


def _constant(value: Any) -> int:
    """The integer of a constant, through casts of its type."""
    operation = value.owner
    while not operation.name.endswith(".constant"):
        operation = operation.operands[0].owner
    return int(ir.IntegerAttr(operation.attributes["value"]).value)


@dataclasses.dataclass(frozen=True)
class Used:
    """What ptxas reports of a kernel: registers of a thread, bytes that are spilled (stores and loads), the stack."""

    registers: int
    spilled: int
    stack: int


def read_ptxas(text: str) -> dict[str, Used]:
    """The report of ptxas, by kernel: from the lines that it prints with `-v`, whatever stands between them."""
    used: dict[str, Used] = {}
    for part in re.split(r"Compiling entry function '", text)[1:]:
        name, marks, _ = part.partition("_mosaic_gpu_kernel'")
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        if marks and stack and registers:
            frame, stores, loads = (int(size) for size in stack.groups())
            used[name] = Used(int(registers.group(1)), stores + loads, frame)
    return used


def compile_cases(cases: tuple[Case, ...]) -> None:
    """Compiles cases, and prints a line of JSON before each; run with `MOSAIC_GPU_DUMP_PTXAS=1` in the environment."""
    device = gpu_devices(topology(_CHIP))[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    for index, case in enumerate(cases):
        function, shapes = case.program(device_target(device))
        placed = [jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding) for shape in shapes]
        lowered = jax.jit(function).lower(*placed)
        kernels = [dataclasses.asdict(launch) for launch in launches(lowered)]
        print("\n" + _CASE + json.dumps({"index": index, "kernels": kernels}), flush=True)
        lowered.compile()


def measure(quick: bool) -> list[dict[str, Any]]:
    """A row for every kernel of every case.

    Raises:
      RuntimeError: a compiler failed; the message ends with what it printed.
    """
    cases = QUICK if quick else CASES
    # The compilers run alone: options of a test run, for example, are not those of a user's program.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTXAS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--compile", *(["--quick"] if quick else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"the compilers failed with status {done.returncode}:\n{done.stderr[-3000:]}")
    rows: list[dict[str, Any]] = []
    for part in done.stdout.split(_CASE)[1:]:
        line, _, printed = part.partition("\n")
        described, used = json.loads(line), read_ptxas(printed)
        case = cases[described["index"]]
        for launch in described["kernels"]:
            # Nothing is printed for a kernel whose code an earlier case has compiled.
            report = used.get(launch["kernel"])
            numbers = dict.fromkeys(("registers", "spilled", "stack")) if report is None else dataclasses.asdict(report)
            # Pallas renames a kernel that replaces an argument.
            name = "jacobi_update" if isinstance(case, UpdateCase) else launch["kernel"]
            rows.append({"case": case.name, **launch, "kernel": name, **numbers})
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The rows as text, a header first."""
    head = ["kernel", "call", "blocks", "threads", "registers", "spilled bytes", "shared KiB"]
    body = [
        [
            row["kernel"], row["case"], f"{row['blocks']:,}", str(row["threads"]), str(row["registers"] or "as above"),
            str("as above" if row["spilled"] is None else row["spilled"]), f"{row['shared'] / 1024:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    return [head, *body]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    head, *body = table(rows)
    lines = [head, ["---", "---", *5 * ["---:"]], *body]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="compile a small part")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the rows as JSON")
    parser.add_argument("--markdown", type=output_file, metavar="FILE", help="also write the table as Markdown")
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if missing_modules():
        parser.error(f"needs {', '.join(missing_modules())}, not installed here: {NEEDED}")
    if options.compile:
        compile_cases(QUICK if options.quick else CASES)
        return 0
    rows = measure(options.quick)
    print(text_table(table(rows)))
    if options.json:
        write_json(options.json, {"kernels": rows})
    if options.markdown:
        write_text(options.markdown, markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
