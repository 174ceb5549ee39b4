"""The solver that `--solver auto --objective time` chooses for a flow of the benchmarks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flow_passes import FlowPasses

from starflow_jax.solvers import AnySolver
from starflow_jax.solvers.automatic.block_solver_choice import auto, choices
from starflow_jax.solvers.automatic.solver_measurement import calibrate


def automatic_solver(passes: FlowPasses, guided: bool, target: float) -> tuple[AnySolver, list[str]]:
    """The solver, and the method of each block with layers, block 0 first.

    It is calibrated on samples of other noise than that which the benchmark inverts.
    """
    noise = jax.random.normal(jax.random.key(101), passes.x.shape)
    function, (params, _, text) = passes.run("sequential guided" if guided else "sequential")
    samples = jax.jit(function)(params, noise, text).x
    calibration = calibrate(
        passes.config,
        passes.params,
        jnp.asarray(samples),
        passes.text,
        guidance=passes.guidance if guided else None,
        weight=passes.sizes.guidance if guided else 0.0,
        target_error=target,
    )
    batch = passes.sizes.batch
    chosen = choices(calibration, batch=batch, objective="time", target_error=target)
    return auto(calibration, batch=batch, objective="time"), [choice.trial.method.label for choice in chosen]
