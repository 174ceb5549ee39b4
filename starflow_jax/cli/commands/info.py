"""`starflow info`: the experiment, progress, metrics and checkpoints of a run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.stored import outline_path, output_file

ORDER = 20

DESCRIPTION = """\
Shows the experiment of a run, its progress, its last and best metrics, and the contents of its checkpoints. Reads no
arrays and uses no accelerator, so it can be called while the run is training."""

EXAMPLES = """\
examples:
  starflow info --workdir runs/digits
  starflow info --workdir runs/digits --json digits.json
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "info", help="show the progress and the checkpoints of a run", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--workdir", required=True, type=outline_path, metavar="DIR", help="folder of a run")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the results as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""

    import jax

    # Counting parameters traces a function; an accelerator may be in use by the run.
    jax.config.update("jax_platforms", "cpu")

    from starflow_jax.core.figures import write_json
    from starflow_jax.training.checkpoints.workdir import read_any_config
    from starflow_jax.training.run_info import InfoRequest, run_info

    with sentences(read_any_config):
        figures = run_info(build_request(InfoRequest, arguments))
    print("\n".join(_lines(figures)))
    if arguments.json is not None:
        write_json(arguments.json, figures)
    return 0


def _lines(figures: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""
    from starflow_jax.core.figures import text_table
    from starflow_jax.reports.run_text import checkpoint_rows, description, state

    lines = [f"{figures['name']}: {description(figures)}", state(figures)]
    if figures["metrics"]:
        values = (f"{name} {value:.6g}" for name, value in figures["metrics"].items() if name != "step")
        lines.append("last: " + ", ".join(values))
    lines += [f"best {name}: {best['value']:.6g} at step {best['step']:.0f}" for name, best in figures["best"].items()]
    if figures["goodput"] is not None:
        lines += [f"{label}: {text}" for label, text in figures["goodput"]["rows"]]
    checkpoints = checkpoint_rows(figures)
    return [*lines, "", text_table(checkpoints)] if checkpoints else lines
