"""Times the kernel of the Jacobi update in comparison with XLA, and with copying the same number of bytes.

    python experiments/benchmarks/jacobi_update.py --json update.json    # on a GPU or TPU: the kernel; else XLA alone
    python experiments/benchmarks/jacobi_update.py --quick               # tiny shapes, as a test of this script

Each row is a shape of the released models. "kernel" is the Pallas kernel of this device if one supports the shape (see
column "runs"), and "xla" the reference compiled by XLA. One program makes several updates of one estimate, each with
different output and noise, so that neither host time nor cached values affect the result; optimization barriers keep
XLA from fusing the updates. GB/s are the bytes that an update must move (output, noise and old estimate read, new
estimate written) divided by the kernel's time; "of copy" is the ratio of this rate to that of negating arrays with the
same number of bytes in the same run. Short chunks are bound by the launch of the kernel, not by memory: their ratio is
low, and their time is the relevant figure.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from starflow_jax.core.figures import text_table, write_json
from starflow_jax.experiments.benchmarks.timing import best_seconds, compiled
from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.kernel_choice import Target, device_target


class Case(NamedTuple):
    """A chunk: samples, tokens, channels per token; with guidance the output has twice as many rows."""

    name: str
    samples: int
    tokens: int
    channels: int
    guided: bool

    @property
    def head(self) -> AffineHead:
        """The affine head of the released models."""
        return AffineHead("softplus", 4.0, "ratio" if self.guided else None)

    @property
    def bytes(self) -> int:
        """Bytes read and written by an update that moves every value once."""
        return 4 * self.samples * self.tokens * self.channels * (3 + 2 * self.head.num_passes)


CASES = [
    Case("3B image, chunk of 64", 1, 64, 4, True),
    Case("3B image, chunk of 512", 1, 512, 4, True),
    Case("3B image, whole, batch 64", 64, 1024, 4, True),
    Case("7B video, chunk of 64", 1, 64, 48, True),
    Case("7B video, chunk of 512", 1, 512, 48, True),
    Case("7B video, 21 frames at once", 21, 1590, 48, False),
    Case("7B video, whole", 1, 33390, 48, True),
    Case("7B video, whole, batch 4", 4, 33390, 48, True),
]
QUICK = [Case("tiny", 2, 40, 4, True), Case("tiny, unguided", 1, 70, 4, False)]


def arrays(case: Case, updates: int) -> tuple[list[tuple[jax.Array, jax.Array]], jax.Array, jax.Array]:
    """The output and noise of every update, the initial estimate, and the span that covers all tokens."""
    shape = (case.samples, case.tokens, case.channels)
    rows = (case.head.num_passes * case.samples, case.tokens, 2 * case.channels)
    keys = jax.random.split(jax.random.key(0), 2 * updates + 1)
    inputs = [
        (0.5 * jax.random.normal(keys[2 * k], rows), jax.random.normal(keys[2 * k + 1], shape)) for k in range(updates)
    ]
    return inputs, jax.random.normal(keys[-1], shape), jnp.tile(jnp.asarray([[0, case.tokens]]), (case.samples, 1))


def chain(case: Case, target: Target, implementation: Any) -> Callable[..., Any]:
    """A function of `arrays` that makes all updates."""
    update = functools.partial(jacobi_update.update, head=case.head, target=target, implementation=implementation)

    def run(inputs, x, span):
        sums = []
        for out, z in inputs:
            x, change = update(out, z, x, span, 1.5, 0)
            x, change = jax.lax.optimization_barrier((x, change))
            sums.append(change)
        return x, jnp.stack(sums)

    return run


def available(out: jax.Array, x: jax.Array, head: AffineHead, target: Target) -> Literal["xla", "pallas"]:
    """The implementation: the kernel if it supports the call, even if it is not used by default, else XLA."""
    try:
        return jacobi_update.chosen(out, x, head=head, target=target, implementation="pallas")
    except ValueError as reason:
        print(f"{reason}", file=sys.stderr)
        return "xla"


def copies(inputs: list[jax.Array]) -> list[jax.Array]:
    """Negates every array, which moves as many bytes as a copy; XLA cannot remove a negation."""
    return [-array for array in inputs]


def measure(case: Case, target: Target, rounds: int, updates: int) -> dict[str, Any]:
    """The results for one shape."""
    inputs, x, span = arrays(case, updates)
    programs, results = {}, {}
    chosen = available(inputs[0][0], x, case.head, target)
    for name, implementation in (("kernel", chosen), ("xla", "xla")):
        programs[name], _ = compiled(chain(case, target, implementation), inputs, x, span)
        results[name] = programs[name]()
    difference = float(jnp.max(jnp.abs(results["kernel"][0] - results["xla"][0])))
    size = float(jnp.max(jnp.abs(results["xla"][0])))
    # Half the bytes are read, and half are written.
    blocks = [jnp.ones((case.bytes // 8,)) for _ in range(updates)]
    programs["copy"], _ = compiled(copies, blocks)
    seconds = {name: best / updates for name, best in best_seconds(programs, rounds=rounds).items()}
    return {
        "case": case._asdict(),
        "implementation": chosen,
        "bytes": case.bytes,
        "microseconds": {name: 1e6 * value for name, value in seconds.items()},
        "gb_per_second": {name: case.bytes / value / 1e9 for name, value in seconds.items()},
        "of_copy": seconds["copy"] / seconds["kernel"],
        "xla_over_kernel": seconds["xla"] / seconds["kernel"],
        "relative_difference": difference / size,
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The results as text."""
    rows = [["shape", "runs", "MB", "kernel us", "xla us", "faster", "GB/s", "copy GB/s", "of copy", "apart"]]
    for line in lines:
        time, rate = line["microseconds"], line["gb_per_second"]
        rows.append(
            [
                line["case"]["name"],
                line["implementation"],
                f"{line['bytes'] / 1e6:.3g}",
                f"{time['kernel']:.1f}",
                f"{time['xla']:.1f}",
                f"{line['xla_over_kernel']:.2f}x",
                f"{rate['kernel']:.3g}",
                f"{rate['copy']:.3g}",
                f"{100 * line['of_copy']:.0f} %",
                f"{line['relative_difference']:.0e}",
            ]
        )
    return text_table(rows)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="runs of each program, the best counts")
    parser.add_argument("--updates", type=int, default=16, help="updates in one program")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one run each")
    options = parser.parse_args(arguments)
    for name in ("rounds", "updates"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be an integer >= 1, got {getattr(options, name)}")
    target = device_target()
    rounds, updates = (1, 2) if options.quick else (options.rounds, options.updates)
    lines = [measure(case, target, rounds, updates) for case in (QUICK if options.quick else CASES)]
    print(
        f"jax {jax.__version__}, {target.kind}; baselines of the same run: copying, and the reference compiled by XLA\n"
    )
    print(table(lines))
    if options.json:
        about = {"jax": jax.__version__, "device": target.kind, "platform": target.platform}
        write_json(options.json, {**about, "lines": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
