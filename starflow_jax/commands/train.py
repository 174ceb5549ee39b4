"""`starflow train`: trains an experiment, or goes on training it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from starflow_jax.commands.devices import add_processes, join
from starflow_jax.commands.errors import INTERRUPTED, sentences
from starflow_jax.commands.outputs import check_writable

DESCRIPTION = """\
Trains the experiment of a configuration file, or goes on where an earlier call stopped.

The folder of --workdir receives config.json, checkpoints/, metrics.csv, events/ (TensorBoard),
samples_STEP.png and curves.png. Ctrl-C saves a checkpoint; the same command then goes on to exactly the
parameters it would have reached unstopped."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration; it may be repeated, and later ones win.

examples:
  starflow train --config experiments/digits.py --workdir runs/digits
  starflow train --config experiments/digits.py:tiny --workdir runs/tiny --config.train.lr=1e-3
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "train", help="train, or go on training, an experiment", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="Python file with get_config(); a variant after a colon is given to it",
    )
    parser.add_argument(
        "--workdir", required=True, type=Path, metavar="DIR", help="folder of the run: new, empty, or its own"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures at the end as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_processes(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.config import load_config

    with sentences():
        config = load_config(arguments.config, arguments.overrides)
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    join(arguments)
    from starflow_jax.evaluation.pictures import write_sample_grid
    from starflow_jax.figures import write_json
    from starflow_jax.training import Checkpoints, open_source, train
    from starflow_jax.training.inputs import check_source
    from starflow_jax.training.workdir import claim_workdir

    begun = time.perf_counter()
    try:
        with sentences(open_source, check_source, claim_workdir, Checkpoints.restore, Checkpoints.resume):
            # Clips take too long to draw to interrupt a training for them.
            callbacks = [] if config.data.frames else [write_sample_grid]
            result = train(config, arguments.workdir, callbacks=callbacks, progress=not arguments.quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the last checkpoint, if there is one") from None
    figures = {
        "name": config.name,
        "workdir": str(arguments.workdir),
        "step": result.step,
        "steps": config.train.steps,
        "interrupted": result.interrupted,
        "seconds": time.perf_counter() - begun,
        "images_per_second": result.images_per_second,
        "metrics": dict(result.metrics),
    }
    if arguments.json is not None:
        write_json(arguments.json, figures)
    if result.interrupted:
        print(
            f"starflow: interrupted at step {result.step} of {config.train.steps}; "
            "a checkpoint is saved and the same command goes on from it",
            file=sys.stderr,
        )
        return INTERRUPTED
    print(_summary(config.name, result.step, result.metrics))
    print(f"run: {arguments.workdir}  curves: {arguments.workdir / 'curves.png'}")
    return 0


def _summary(name: str, step: int, metrics: Any) -> str:
    if not metrics:
        return f"{name}: trained for {step} steps already"
    bits = f", training bits/dim {metrics['bits_per_dim']:.4f}" if "bits_per_dim" in metrics else ""
    return f"{name}: trained for {step} steps, loss {metrics['loss']:.4f}{bits}"
