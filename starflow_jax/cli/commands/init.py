"""`starflow init`: an experiment file for a folder of images."""

from __future__ import annotations

import argparse
from typing import Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.build_request import build_request
from starflow_jax.cli.options.outputs import check_writable
from starflow_jax.cli.options.paths import path

ORDER = 15

DESCRIPTION = """\
Looks at a folder of images (sizes, class folders, captions beside the images) and writes an experiment file for it,
with the reason for every choice as a comment. `starflow train --config FILE` trains it."""

EXAMPLES = """\
examples:
  starflow init --data photos --out my_config.py
  starflow train --config my_config.py --workdir runs/photos
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "init", help="write an experiment file for a folder of images", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--data", type=path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="the experiment file: a new .py file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.data.experiment_file import InitRequest, write_experiment_file

    request = build_request(InitRequest, arguments, folder=arguments.data)
    check_writable("--out", request.out)
    with sentences(write_experiment_file):
        suggestion = write_experiment_file(request)
    for name in ("data.source", "flow.num_classes", "flow.text_length", "flow.family", "flow.image_size"):
        if name in suggestion.reasons:
            print(f"{name}: {suggestion.reasons[name]}")
    print(f"experiment: {request.out}")
    print(f"next: starflow train --config {request.out} --workdir runs/{suggestion.values['name']}")
    return 0
