"""`starflow demo`: trains on handwritten digits, still or moving, and writes a report."""

from __future__ import annotations

import argparse
from typing import Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.arguments import integer
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.paths import path
from starflow_jax.cli.options.stored import output_file

ORDER = 170
COMPILES = True

DESCRIPTION = """\
Trains a flow on 1,437 handwritten digits, scores it on 360 others against the best class-conditional Gaussian mixture,
samples new digits, and writes samples.png, curves.png, report.md, report.html (see starflow report) and report.json.

With --video it trains a STARFlow-V on clips of moving digits instead, scores held-out clips frame by frame, compares
denoisers, samples clips from captions, from a first frame, from another clip and of three times the trained length,
and writes MP4 and GIF files, frames.png, surprise.png, curves.png, report.md, report.html and report.json.

Takes a few minutes on two CPU cores (--video: about 15) and downloads nothing. A demo that was stopped is resumed; a
finished one prints its report again."""

EXAMPLES = """\
examples:
  starflow demo
  starflow demo --out runs/demo --seed 1
  starflow demo --video
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "demo", help="train, score and sample on handwritten digits", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--video", action="store_true", help="train on clips of moving digits instead of images")
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="folder for the results (default demo, with --video demo_video)"
    )
    parser.add_argument(
        "--seed",
        type=integer(0, 2**32 - 1),
        metavar="N",
        help="random seed (default: the experiment's)",
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="a model that trains in seconds and learns little, to check that everything works",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the figures of report.json there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    import sys

    from starflow_jax.cli.errors import INTERRUPTED
    from starflow_jax.core.figures import write_json
    from starflow_jax.demos.demo_request import DemoRequest, run_request
    from starflow_jax.demos.digits_demo import claim, demo_config
    from starflow_jax.training import Checkpoints
    from starflow_jax.training.checkpoints.resume import restore_newest
    from starflow_jax.training.checkpoints.workdir import in_use

    request = build_request(DemoRequest, arguments, progress=not arguments.quiet)
    again = f"the same command resumes {request.workdir}"
    reading = (demo_config, claim, in_use, restore_newest, Checkpoints.restore_params)
    try:
        with sentences(*reading, Checkpoints.save, Checkpoints.check, Checkpoints.__exit__):
            report = run_request(request)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(again) from None
    if report is None:
        print(f"starflow: interrupted; {again}", file=sys.stderr)
        return INTERRUPTED
    if arguments.json is not None:
        write_json(arguments.json, report)
    return 0
