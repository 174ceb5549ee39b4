"""The solver that inverts the blocks: its options on the command line, and how it is built from them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from starflow_jax.cli.options.arguments import choice, integer, real
from starflow_jax.core.choices import Objective, SolverOption, choices
from starflow_jax.core.registries import SOLVERS

if TYPE_CHECKING:
    from starflow_jax.sampling.sample_requests import SolverRequest


def add_solver_options(parser: argparse.ArgumentParser) -> None:
    """Declares --solver and the options of each solver."""
    names = SOLVERS.names()
    option = parser.add_argument
    option(
        "--solver",
        type=choice(*names),
        metavar="NAME",
        help=f"{', '.join(names[:-1])} or {names[-1]} (default: the configuration's)",
    )
    option(
        "--block",
        type=integer(1, 10**6),
        metavar="N",
        help="jacobi: tokens of a chunk, of the first frame in videos; sliding: of the window (default 64); secant: of "
        "a chunk (default all)",
    )
    option(
        "--modules",
        type=integer(1, 10**6),
        metavar="N",
        help="gs-jacobi: modules of a tough block (default 8); a calibration of the run says which block is tough",
    )
    option(
        "--tolerance",
        type=real(),
        metavar="X",
        help="jacobi, selective, gs-jacobi, secant: stop at this relative mean-square change (default 1e-3, a relative "
        "error near 0.1; gs-jacobi 1e-8, secant 1e-6); sliding: relative root mean square per token (default 1e-3)",
    )
    option(
        "--max-iterations",
        type=integer(1, 100_000),
        metavar="N",
        help="jacobi, selective, gs-jacobi (tough blocks), secant: maximum number of iterations per chunk (default "
        "32; secant 64)",
    )
    option(
        "--objective",
        type=choice(*choices(Objective)),
        metavar="NAME",
        help="auto: least time on the calibrated machine (default), or least depth, for accelerators",
    )
    option(
        "--target-error",
        type=real(above=True),
        metavar="X",
        help="auto: relative error of the final sample (default: the calibration's)",
    )


def solver_request(arguments: argparse.Namespace) -> SolverRequest:
    """The solver that the options name, for requests of the library."""
    from starflow_jax.sampling.sample_requests import SolverRequest

    options = {name: getattr(arguments, name) for name in choices(SolverOption)}
    return SolverRequest(arguments.solver, {name: value for name, value in options.items() if value is not None})
