"""The form of the parameters that an inverse reads, of commands that sample."""

from __future__ import annotations

import argparse

from starflow_jax.cli.options.arguments import choice
from starflow_jax.core.choices import ParameterForm, choices


def add_parameter_form(parser: argparse.ArgumentParser) -> None:
    """Declares --parameters."""
    parser.add_argument(
        "--parameters",
        type=choice(*choices(ParameterForm)),
        metavar="NAME",
        help="ready: cast to the compute dtype and gathered over the mesh once; stored: at every use, which is slower "
        "and needs less memory (default: the configuration's, which is ready)",
    )
