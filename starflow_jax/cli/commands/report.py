"""`starflow report`: one HTML page of a run."""

from __future__ import annotations

import argparse
from typing import Any

from starflow_jax.cli.errors import CommandError, sentence, sentences
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.stored import outline_path, output_file

ORDER = 35

DESCRIPTION = """\
Writes one HTML page of a run, which contains everything it shows and loads nothing: its state, curves of its metrics,
samples over time, likelihoods that starflow evaluate, score and sweep wrote into its folder as JSON, the goodput, the
checkpoints, the configuration with the fields that differ from their defaults, and the commands that train the same
again.

Reads no arrays and uses no accelerator, so it can be called while the run is training. Runs of flows, autoencoders and
learned inverses have the parts that exist."""

EXAMPLES = """\
examples:
  starflow report --workdir runs/digits
  starflow report --workdir runs/digits --out digits.html
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "report", help="write one HTML page of a run", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--workdir", required=True, type=outline_path, metavar="DIR", help="folder of a run")
    parser.add_argument(
        "--out", type=output_file, metavar="FILE.html", help="the page (default: report.html in the folder of the run)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    import jax

    # Counting parameters traces a function; an accelerator may be in use by the run.
    jax.config.update("jax_platforms", "cpu")

    from starflow_jax.core.storage.places import shown
    from starflow_jax.reports.run_report import ReportRequest, write_run_report
    from starflow_jax.training.checkpoints.workdir import read_any_config

    if arguments.out is None and shown(arguments.workdir) != str(arguments.workdir):
        raise CommandError(f"--out is required where --workdir is an address, got {shown(arguments.workdir)} alone")
    request = build_request(ReportRequest, arguments)
    with sentences(read_any_config):
        if read_any_config(arguments.workdir) is not None:
            check_writable("--out", request.path)  # before the folder is read
        try:
            written = write_run_report(request)
        except OSError as error:
            raise CommandError(sentence(error)) from error
    print(f"report: {written}")
    return 0
