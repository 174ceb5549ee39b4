"""Which solver inverts the blocks: its options on the command line, and the solver they name."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.arguments import choice, integer, real
from starflow_jax.cli.remarks import remark
from starflow_jax.core.choices import Objective, choices

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.solvers import AnySolver, Calibration

# What each solver takes: the name in the namespace, and that of the solver's own argument.
_OPTIONS = {
    "sequential": {},
    "jacobi": {"block": "block", "tolerance": "tolerance", "max_iterations": "max_iterations"},
    "sliding": {"block": "window", "tolerance": "tolerance"},
    "selective": {"tolerance": "tolerance", "max_iterations": "max_iterations"},
    "gs-jacobi": {"modules": "modules", "tolerance": "tolerance", "max_iterations": "tough_iterations"},
    "secant": {"block": "block", "tolerance": "tolerance", "max_iterations": "max_iterations"},
    "auto": {"objective": "objective", "target_error": "target_error"},
}
NAMES = tuple(_OPTIONS)


def add_solver_options(parser: argparse.ArgumentParser) -> None:
    """Declares --solver and the options of each solver."""
    option = parser.add_argument
    option(
        "--solver",
        type=choice(*NAMES),
        metavar="NAME",
        help=f"{', '.join(NAMES[:-1])} or {NAMES[-1]} (default: the configuration's)",
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
      arguments: with `workdir`, where "auto" finds its calibration.
      config: of the run. step: of the parameters that are used. batch: samples that are drawn together.

    Raises:
      CommandError: an option of another solver, or no calibration for "auto".
    """
    from starflow_jax.sampling import default_solver, named_solver
    from starflow_jax.solvers import calibrated_gs_jacobi
    from starflow_jax.solvers.automatic.choice import auto
    from starflow_jax.training.run_calibration import CALIBRATION_FILE, read_calibration

    name = arguments.solver or config.sample.solver
    known = _OPTIONS[name]
    given = {}
    for option in dict.fromkeys(option for of_solver in _OPTIONS.values() for option in of_solver):
        value = getattr(arguments, option)
        if value is None:
            continue
        if option not in known:
            owners = [solver for solver, options in _OPTIONS.items() if option in options]
            flag = f"--{option.replace('_', '-')}"
            raise CommandError(f"{flag} belongs to --solver {' or '.join(owners)}, got --solver {name}")
        given[known[option]] = value
    if name == "auto":
        with sentences(read_calibration):
            found = read_calibration(arguments.workdir, config)
        _warn_of_age(found, step)
        return auto(found, batch=batch, **given)
    if name == "gs-jacobi" and (arguments.workdir / CALIBRATION_FILE).is_file():
        with sentences(read_calibration):
            found = read_calibration(arguments.workdir, config)
            _warn_of_age(found, step)
            return calibrated_gs_jacobi(found, **given)
    return named_solver(name, config.flow, **given) if given or arguments.solver else default_solver(config)


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
        return {"name": "perblock", "solvers": [solver_figures(own) for own in solver.solvers]}
    return {"name": type(solver).__name__.lower(), **dataclasses.asdict(solver)}  # type: ignore[call-overload] # all are
