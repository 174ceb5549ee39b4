"""`starflow init`: an experiment file for a folder of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.outputs import check_writable

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
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the experiment file, new, .py")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    out: Path = arguments.out
    if out.suffix != ".py":
        raise CommandError(f"--out must end in .py, got {out}")
    if out.exists():
        raise CommandError(f"--out must be a new file, got {out}, which exists")

    from starflow_jax.data.experiment_file import write_experiment_file
    from starflow_jax.data.suggestion import survey_folder

    with sentences(survey_folder, write_experiment_file):
        survey = survey_folder(arguments.data)
        check_writable("--out", out)
        suggestion = write_experiment_file(survey, out)
    for name in ("data.source", "flow.num_classes", "flow.text_length", "flow.family", "flow.image_size"):
        if name in suggestion.reasons:
            print(f"{name}: {suggestion.reasons[name]}")
    print(f"experiment: {out}")
    print(f"next: starflow train --config {out} --workdir runs/{suggestion.values['name']}")
    return 0
