"""Checks, times and tunes every kernel on the GPU or TPU of this machine: the first command to run where there is one.

    python experiments/on_device.py --minutes 30 --json device.json --markdown device.md
    python experiments/on_device.py --only correctness --minutes 9
    python experiments/on_device.py --interpret          # tiny shapes on a CPU, as a test of this command

Stages, in this order: the kernels of attention (output and gradients), of decoding with a cache and of the Jacobi
update, each against the reference; their times beside XLA, cuDNN, tokamax and PyTorch where these are installed; a
training step and a Jacobi iteration of the 3B model's width beside `starflow plan`; block sizes. Every check and every
benchmark is a process with a limit of its own, because a kernel that has never run can hang: a hang, a crash or a wrong
result is a row of the table, and the run goes on. The files are written whole after every row. At the end stands which
defaults should change, by the rules of `benchmarks/on_device/defaults.py`. The exit status is 1 where a row says that
something is wrong, and 2 where nothing can be run.

It needs a checkout of the repository, because the benchmarks are no part of the installed package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit status."""
    if not Path(__file__).with_name("benchmarks").is_dir():
        print("on_device.py: error: it must be run from a checkout, beside benchmarks/", file=sys.stderr)
        return 2
    from starflow_jax.experiments.benchmarks.on_device.command import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
