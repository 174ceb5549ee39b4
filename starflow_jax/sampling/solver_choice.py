"""The solver of a request: by its name and options, with the calibration of the run where it uses one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from starflow_jax.core.registries import SOLVERS
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.sampling.loaded_run import Run
from starflow_jax.sampling.sample_requests import SolverRequest
from starflow_jax.solvers import AnySolver, PerBlock, is_approximate, named_solver, reads_estimates
from starflow_jax.solvers.named import accepted_flags, needs_calibration, uses_calibration
from starflow_jax.training.run_calibration import CALIBRATION_FILE, read_calibration


def choose_solver(
    request: AnySolver | SolverRequest | str | None, run: Run, *, batch: int, warn: Callable[[str], None]
) -> AnySolver:
    """The solver that a request names, or that of the configuration.

    Args:
      request: a solver, its name, or its name with options; None for the solver of the configuration.
      run: the trained model.
      batch: samples that are inverted together.
      warn: called with a message if the calibration or the learned inverse is of another step than the parameters, and
        if the samples are not exact.

    Raises:
      RequestError: a solver that is not registered, or an option of another solver.
      ValueError: an option out of range, or no calibration for a solver that needs one.
    """
    if request is not None and not isinstance(request, SolverRequest | str):
        return _checked(request, run, warn)
    solver_request = request if isinstance(request, SolverRequest) else SolverRequest(request)
    name = solver_request.name or run.config.sample.solver
    names = SOLVERS.names()
    # The solver of a run may be defined by its experiment file, which is not imported here.
    require(name in names, "{solver} must be one of {0}, got {1!r}, which is not registered", ", ".join(names), name)
    accepted, options = accepted_flags(name), {}
    for option, value in solver_request.options.items():
        if option not in accepted:
            owners = [solver for solver in SOLVERS.names() if option in accepted_flags(solver)]
            raise RequestError(
                f"{{{option}}} is an option of {{solver}} {{0}}, got {{solver}} {{1}}", " or ".join(owners), name
            )
        options[accepted[option]] = value
    calibration = None
    if needs_calibration(name) or (uses_calibration(name) and (run.workdir / CALIBRATION_FILE).is_file()):
        calibration = read_calibration(run.workdir, run.config)
        if calibration.step != run.step:
            warn(
                f"warning: the calibration is of step {calibration.step}, the parameters of step {run.step}; "
                "starflow calibrate measures again"
            )
    solver = named_solver(name, run.config.flow, calibration=calibration, batch=batch, **options)
    if calibration is not None and reads_estimates(solver) and run.learned_inverse.step != calibration.inverse_step:
        warn(
            f"warning: the calibration is of step {calibration.inverse_step} of the learned inverse, its parameters of "
            f"step {run.learned_inverse.step}; starflow calibrate measures again"
        )
    return _checked(solver, run, warn)


def _checked(solver: AnySolver, run: Run, warn: Callable[[str], None]) -> AnySolver:
    """The solver, after the checks of what it reads from a learned inverse; arguments as of `choose_solver`."""
    if reads_estimates(solver):
        step = run.learned_inverse.experiment.flow_step
        if step != run.step:
            warn(
                f"warning: the learned inverse is of step {step}, the parameters of step {run.step}, so that its "
                f"estimates are worse; starflow train-inverse --step {run.step} trains another one once the folder "
                "inverse of the run is renamed"
            )
    if is_approximate(solver):
        warn("the samples are estimates of the learned inverse; --solver verified draws those of the flow itself")
    return solver


def solver_figures(solver: AnySolver) -> dict[str, Any]:
    """A solver as plain values, for JSON files."""
    if isinstance(solver, PerBlock):
        return {"name": "perblock", "solvers": [solver_figures(block_solver) for block_solver in solver.solvers]}
    return {"name": type(solver).__name__.lower(), **dataclasses.asdict(solver)}  # type: ignore[call-overload] # all are
