"""`starflow version`: the versions of software that affect results."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from typing import Any

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

ORDER = 180


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "version",
        help="versions of starflow and its dependencies",
        description="Prints the versions of starflow, Python and the libraries that decide a result.",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    from starflow_jax import __version__

    print(f"starflow {__version__}")
    print(f"python {platform.python_version()}")
    for library in LIBRARIES:
        print(library, metadata.version(library))
    return 0
