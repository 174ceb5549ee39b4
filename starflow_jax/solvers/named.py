"""Builds solvers by name, from a configuration or the command line."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from starflow_jax.core.choices import SolverOption, choices
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.registries import SOLVERS
from starflow_jax.solvers.per_block import AnySolver

if TYPE_CHECKING:
    from starflow_jax.solvers.automatic.calibration import Calibration


def named_solver(
    name: str, flow: FlowConfig, *, calibration: Calibration | None = None, batch: int = 1, **options: Any
) -> AnySolver:
    """A solver by its registered name.

    The registered class or function is called with `options`, and with those of `flow`, `calibration` and `batch` that
    it has parameters for.

    Args:
      name: one of `SOLVERS.names()`.
      flow: the configuration of the flow.
      calibration: measurements of the flow's blocks (`solvers.automatic`), where there are any.
      batch: samples that will be inverted together.
      **options: arguments of the solver's class or function.

    Raises:
      ValueError: an unknown name, an option out of range, or no calibration for a solver that needs one.
    """
    build = SOLVERS.get(name)
    parameters = inspect.signature(build).parameters
    context = {"flow": flow, "calibration": calibration, "batch": batch}
    check(
        calibration is not None or not needs_calibration(name),
        f"solver {name!r} needs a calibration; pass calibration=read_calibration(workdir, config)",
    )
    solver: AnySolver = build(**{key: value for key, value in context.items() if key in parameters}, **options)
    return solver


def needs_calibration(name: str) -> bool:
    """Whether a solver cannot be built without a calibration."""
    parameter = inspect.signature(SOLVERS.get(name)).parameters.get("calibration")
    return parameter is not None and parameter.default is parameter.empty


def uses_calibration(name: str) -> bool:
    """Whether a solver can be built from a calibration."""
    return "calibration" in inspect.signature(SOLVERS.get(name)).parameters


def accepted_flags(name: str) -> dict[str, str]:
    """The options of `SolverOption` that a solver takes, each with the name of the solver's argument.

    These are the `flags` that the solver was registered with; without them, all parameters that are named like a flag.
    """
    flags = SOLVERS.details(name).get("flags")
    if flags is not None:
        return dict(flags)
    parameters = inspect.signature(SOLVERS.get(name)).parameters
    return {flag: flag for flag in choices(SolverOption) if flag in parameters}
