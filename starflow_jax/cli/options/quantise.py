"""How the kernels of a flow are stored, of commands that read one."""

from __future__ import annotations

import argparse

from starflow_jax.cli.options.arguments import choice
from starflow_jax.core.choices import Quantisation, choices


def add_quantise(
    parser: argparse.ArgumentParser, text: str = "quantise the weights of the layers as they are read"
) -> None:
    """Declares --quantise; `text` says what it does in this command."""
    parser.add_argument(
        "--quantise",
        type=choice(*choices(Quantisation)),
        metavar="NAME",
        help=f"{text}: int8, fp8 or int4, or int8-activations, which rounds their inputs too; likelihoods are those of "
        "the quantised model (docs/how_to/small_machines.md)",
    )
