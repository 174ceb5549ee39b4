"""Recorded inversions: sequential and Jacobi, guided, after given frames, longer than trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from recordings import Check, Folder, channels_first, channels_last, condition, relative_error

from starflow_jax.flows import Guidance, LinearGuidance
from starflow_jax.solvers import AnySolver, Inversion, Jacobi, Sequential, SlidingWindow, inverse
from starflow_jax.solvers.tolerance import with_tolerance

INVERSE_BAR = 1e-4
# Traces are recorded to 4 digits, and a residual is a small difference of larger numbers.
RESIDUAL_BAR = 2e-2
# Attention temperature of TARFlow's unconditional half where a recording names none.
NO_TEMPERATURE = 1.0


@jax.jit(static_argnames=("solver", "window"))
def invert(flow, z, cond, guidance, prefix, temperature, tolerance, *, solver, window) -> Inversion:
    """The inverse by a solver, whose tolerance is replaced by `tolerance` where that is given.

    As an argument, so that recordings which differ in the tolerance alone share a compiled program.
    """
    solver = solver if tolerance is None else with_tolerance(solver, tolerance)
    return inverse(
        flow, z, cond, solver=solver, guidance=guidance, prefix=prefix, window=window, temperature=temperature
    )


def noise(folder: Folder, z: np.ndarray) -> np.ndarray:
    """Recorded noise in the data layout; TARFlow's is recorded as a sequence of patches."""
    if not folder.is_tarflow:
        return channels_last(z)
    flow = folder.flow
    return np.asarray(flow.data_of(jnp.asarray(z).reshape(z.shape[0], *flow.config.grid, -1)))


def guided_condition(folder: Folder, arguments: dict[str, Any], y: np.ndarray | None, batch: int):
    """The condition, the guidance and the temperature of a recorded call."""
    weight, temperature = arguments.get("guidance"), arguments.get("attn_temp")
    if folder.is_tarflow:
        if not weight:
            return y, None, temperature
        guidance = LinearGuidance(
            weight,
            NO_TEMPERATURE if temperature is None else temperature,
            arguments.get("guide_what", "ab"),
            bool(arguments.get("annealed_guidance")),
        )
        return y, guidance, None
    if not weight:
        return y, None, temperature
    return y[:batch], Guidance(weight, y[batch:], bool(arguments.get("guide_top"))), temperature


def run(folder: Folder, experiment: dict[str, Any], solver: AnySolver | None = None) -> Inversion:
    """The recorded call, by the recorded solver unless another is named."""
    arguments = experiment.get("args", {})
    z = noise(folder, folder.input(experiment, "z"))
    y = condition(folder.input(experiment, "y"))
    cond, guidance, temperature = guided_condition(folder, arguments, y, z.shape[0])
    tolerance = None
    if solver is None and arguments.get("jacobi"):
        # No recorded chunk has as many as 32 tokens, and as many iterations as tokens always suffice.
        solver = Jacobi(block=arguments["jacobi_block_size"], max_iterations=min(arguments["jacobi_max_iter"], 32))
        tolerance = arguments["jacobi_th"]
    frames = (folder.arguments | experiment.get("config_overrides", {})).get("local_attn_window")
    window = SlidingWindow(frames, arguments.get("context_length")) if frames else None
    prefix = folder.input(experiment, "context_x0")
    if prefix is not None:
        prefix = channels_last(prefix if prefix.ndim == 5 else prefix[:, None])
    solver = solver or Sequential()
    return invert(folder.flow, z, cond, guidance, prefix, temperature, tolerance, solver=solver, window=window)


def check_inversion(folder: Folder, name: str, experiment: dict[str, Any]) -> list[Check]:
    """The sample, every recorded intermediate, and the trace of a Jacobi run."""
    inversion = run(folder, experiment)
    flow, arguments = folder.flow, experiment.get("args", {})
    prefix = folder.input(experiment, "context_x0")
    given = 0 if prefix is None else (prefix.shape[1] if prefix.ndim == 5 else 1)
    loose = arguments.get("jacobi") and arguments["jacobi_th"] > 1e-6
    # The original decodes a given frame again in its frame-local blocks and drifts: there only generated frames count.
    drifts = bool(given and loose and flow.config.shallow_local)
    checks = []
    states = {f"{name}/x": inversion.x} | {f"{name}/seq_{i}": s for i, s in enumerate(inversion.states)}
    for key, state in states.items():
        if key not in folder.arrays:
            continue
        ours, recorded = channels_first(state), folder.arrays[key]
        note = ""
        if drifts and key != f"{name}/seq_1":
            ours, recorded, note = ours[:, given:], recorded[:, given:], "generated frames"
        checks.append(Check(key, relative_error(ours, recorded), INVERSE_BAR, note))
    if given:
        first = channels_first(inversion.x)[:, :given]
        exact = relative_error(first, prefix if prefix.ndim == 5 else prefix[:, None])
        checks.append(Check(f"{name}/given frames", exact, 0.0, "come back exactly"))
    trace = folder.meta.get("jacobi", {}).get(name)
    if trace and arguments["jacobi_th"] > 1e-9:
        checks += check_trace(name, inversion, trace, residuals_from=flow.config.num_blocks - 1 if drifts else 0)
    elif trace and arguments["jacobi_max_iter"] < 32:
        checks += check_trace(name, inversion, trace, residuals_from=0)
    return checks


def check_trace(name: str, inversion: Inversion, trace: list[dict[str, Any]], residuals_from: int) -> list[Check]:
    """Chunks and iteration counts must be equal; residuals agree in blocks from `residuals_from` on."""
    chunks, distances = [], [0.0]
    for report in inversion.reports:
        for i, count in enumerate(np.asarray(report.evaluations)):
            start, length = int(report.starts[i]), int(report.lengths[i])
            chunks.append((report.block, start, length, int(count), np.asarray(report.residuals[i])[: int(count)]))
    recorded = [(t["block"], t["start"], t["chunk"], t["iters"]) for t in trace]
    same = [c[:4] for c in chunks] == recorded
    if same:
        for chunk, row in zip(chunks, trace, strict=True):
            if chunk[0] >= residuals_from:
                theirs = np.asarray(row["diffs"])
                distances.append(float(np.max(np.abs(chunk[4] - theirs) / np.maximum(theirs, 1e-5))))
    return [
        Check(f"{name}/iterations", 0.0 if same else float("inf"), 0.0, f"{len(trace)} chunks"),
        Check(f"{name}/residuals", max(distances), RESIDUAL_BAR, "recorded to 4 digits"),
    ]
