"""`starflow config`: the resolved configuration of an experiment file, field by field."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import sentences
from starflow_jax.cli.options.paths import experiment_file
from starflow_jax.cli.options.stored import output_file

if TYPE_CHECKING:
    from starflow_jax.reports.resolved_configuration import ResolvedField

ORDER = 125
OVERRIDABLE = True

DESCRIPTION = """\
Prints every field of an experiment file with its value, where that is from (the file, an override, or the default), its
default, and what it means. The file may describe a flow, an autoencoder, or a sweep. Nothing is read but the file."""

EXAMPLES = """\
--config.NAME=VALUE overrides a field of the configuration; it may be repeated, and later ones win.

examples:
  starflow config experiments/digits.py
  starflow config experiments/digits.py:tiny --set-only --config.train.lr=1e-3
  starflow config experiments/moving_digits.py --json config.json
"""

_WIDTH = 100
_ORIGINS = {"file": "the file", "complete": "complete() of the file", "override": "the command line"}


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "config", help="explain every field of an experiment file", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("file", type=experiment_file, metavar="FILE[:VARIANT]", help="Python file with get_config()")
    parser.add_argument("--set-only", action="store_true", help="leave out the fields that have their default")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write the fields as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax.core.figures import write_json
    from starflow_jax.reports.resolved_configuration import resolved_fields

    with sentences():
        fields = resolved_fields(arguments.file, arguments.overrides)
    if arguments.set_only:
        fields = [field for field in fields if field.origin != "default"]
    print("\n".join(_lines(fields)))
    if arguments.json is not None:
        write_json(arguments.json, {"file": arguments.file, "fields": [field._asdict() for field in fields]})
    return 0


def _lines(fields: Sequence[ResolvedField]) -> list[str]:
    lines = []
    for field in fields:
        origin = _ORIGINS.get(field.origin)
        source = "the default" if origin is None else f"from {origin}; default {field.default}"
        lines.append(f"{field.name} = {field.value}    # {source}")
        lines += textwrap.wrap(field.description, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return lines
