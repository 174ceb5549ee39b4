"""The solver that inverts the blocks: its options on the command line, and how it is built from them."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, integer, real
from starflow_jax.cli.remarks import remark
from starflow_jax.core.choices import Objective, choices
from starflow_jax.core.registries import SOLVERS

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.solvers import AnySolver, Calibration


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
        "error near 0.1; gs-jacobi 1e-8, secant 1e-6); sliding: relative root mean square a token (default 1e-3)",
    )
    option(
        "--max-iterations",
        type=integer(1, 100_000),
        metavar="N",
        help="jacobi, selective, gs-jacobi (tough blocks), secant: most iterations of a chunk (default 32; secant 64)",
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


def chosen_solver(arguments: argparse.Namespace, config: ExperimentConfig, *, step: int, batch: int) -> AnySolver:
    """The solver that the options name, or that of `config.sample` where they name none.

    Args:
      arguments: with `workdir`, where a calibration of the run may be.
      config: of the run.
      step: training step of the parameters that are used.
      batch: samples that are inverted together.

    Raises:
      CommandError: an option of another solver, or no calibration for a solver that needs one.
    """
    from starflow_jax.solvers.named import FLAGS, accepted_flags, named_solver, needs_calibration, uses_calibration
    from starflow_jax.training.run_calibration import CALIBRATION_FILE, read_calibration

    name = arguments.solver or config.sample.solver
    accepted, options = accepted_flags(name), {}
    for flag in FLAGS:
        value = getattr(arguments, flag)
        if value is None:
            continue
        if flag not in accepted:
            owners = [solver for solver in SOLVERS.names() if flag in accepted_flags(solver)]
            option = f"--{flag.replace('_', '-')}"
            raise CommandError(f"{option} belongs to --solver {' or '.join(owners)}, got --solver {name}")
        options[accepted[flag]] = value
    calibration = None
    if needs_calibration(name) or (uses_calibration(name) and (arguments.workdir / CALIBRATION_FILE).is_file()):
        with sentences(read_calibration):
            calibration = read_calibration(arguments.workdir, config)
        _warn_of_age(calibration, step)
    return named_solver(name, config.flow, calibration=calibration, batch=batch, **options)


def _warn_of_age(calibration: Calibration, step: int) -> None:
    if calibration.step != step:
        remark(
            f"warning: the calibration is of step {calibration.step}, the parameters of step {step}; "
            "starflow calibrate measures again"
        )


def solver_figures(solver: AnySolver) -> dict[str, Any]:
    """A solver as plain values."""
    from starflow_jax.solvers import PerBlock

    if isinstance(solver, PerBlock):
        return {"name": "perblock", "solvers": [solver_figures(block_solver) for block_solver in solver.solvers]}
    return {"name": type(solver).__name__.lower(), **dataclasses.asdict(solver)}  # type: ignore[call-overload] # all are
