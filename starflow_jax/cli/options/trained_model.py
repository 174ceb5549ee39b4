"""The trained model that a command reads: its folder, and which of its parameters."""

from __future__ import annotations

import argparse

from starflow_jax.cli.options.arguments import integer
from starflow_jax.cli.options.stored import model_path, run_path


def add_trained_model(parser: argparse.ArgumentParser, run: str = "a trained run") -> None:
    """Declares --workdir and --model; `run` says what --workdir holds."""
    parser.add_argument("--workdir", type=run_path, metavar="DIR", help=f"folder of {run}")
    parser.add_argument(
        "--model",
        type=model_path,
        metavar="DIR",
        help="instead of --workdir: a folder of starflow port --assemble, a run, a published model, or hf://ORG/NAME",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Declares --no-ema and --step."""
    parser.add_argument(
        "--no-ema", action="store_true", help="use the last parameters, not their exponential moving average"
    )
    parser.add_argument("--step", type=integer(0), metavar="N", help="step of the checkpoint (default: the newest)")
