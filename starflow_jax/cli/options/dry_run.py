"""The option --dry-run: what a command would read, build and write, instead of doing it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from starflow_jax.cli.process_group import is_first

if TYPE_CHECKING:
    from starflow_jax.core.outline import Outline


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Declares the option."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be read, built and written, with sizes, and stop; nothing but --json is written",
    )


def show(outline: Outline, arguments: argparse.Namespace) -> int:
    """Prints an outline, and writes its figures with --json; returns the exit code."""
    from starflow_jax.core.figures import write_json

    if is_first():
        print(outline.text())
        if arguments.json is not None:
            write_json(arguments.json, outline.figures)
    return 0
