"""Solvers that the originals do not have, at a tight tolerance, against what the originals recorded.

Of each kind of recording (with a start token or without, of images or videos, with given frames, with a window, with
shallow blocks within frames) the first one is taken, whatever its folder and name.
"""

from pathlib import Path

import pytest
from inversions import INVERSE_BAR, run
from recordings import Folder, channels_first, folders, relative_error

from starflow_jax.solvers import Jacobi, SlidingJacobi, gs_jacobi, selective

SOLVERS = {
    "sliding": lambda blocks: SlidingJacobi(window=10, tolerance=1e-6),
    "whole": lambda blocks: Jacobi.whole(tolerance=1e-12, max_iterations=400, per_sample=True),
    "gs": lambda blocks: gs_jacobi(blocks, [0, blocks - 1], modules=5, tolerance=1e-12, other_iterations=400),
    "selective": lambda blocks: selective(blocks, tolerance=1e-12, start="zero"),
}
# A Jacobi iteration of the originals counts as their answer from this tolerance and number of iterations on.
TIGHT, MANY = 1e-9, 400


def kind_of(folder: Folder, experiment: dict) -> tuple[bool, ...] | None:
    """Window, given frames, frame-local blocks, start token, temporal causality; None for what is no case."""
    arguments = experiment.get("args", {})
    if experiment["op"] != "reverse" or "seq_order" not in folder.arguments or arguments.get("attn_temp"):
        return None
    if arguments.get("jacobi") and (arguments["jacobi_th"] > TIGHT or arguments["jacobi_max_iter"] < MANY):
        return None
    windowed = bool((folder.arguments | experiment.get("config_overrides", {})).get("local_attn_window"))
    given, local = "context_x0" in experiment.get("inputs", {}), bool(folder.arguments.get("shallow_block_local"))
    return windowed, given, local, bool(folder.arguments.get("sos")), bool(folder.arguments.get("temporal_causal"))


def solvers_for(windowed: bool, given: bool, local: bool) -> tuple[str, ...]:
    if windowed:
        return "sliding", "gs"
    if given:
        return ("sliding", "selective") if local else ("sliding", "whole")
    return "sliding", "whole", "gs"


def recorded_cases(root: Path) -> list[tuple[Folder, str, str]]:
    """The first recording of each kind, guided before unguided, with each solver that is meant for its kind."""
    first: dict[tuple[bool, ...], tuple[bool, Folder, str]] = {}
    for folder in folders(root):
        for name, experiment in folder.meta["experiments"].items():
            kind, guided = kind_of(folder, experiment), bool(experiment.get("args", {}).get("guidance"))
            if kind is not None and (kind not in first or guided > first[kind][0]):
                first[kind] = (guided, folder, name)
    return [(folder, name, solver) for kind, (_, folder, name) in first.items() for solver in solvers_for(*kind[:3])]


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption("goldens")
    cases = recorded_cases(metafunc.config.rootpath / "tests" / "goldens" if option is None else Path(option))
    quick: set[str] = set()  # solvers that the quick tests run, on one recording each
    params = []
    for folder, experiment, solver in cases:
        # Recordings of clips take twice as long to compile.
        marks = [pytest.mark.slow] if solver in quick or "video" in folder.name else []
        if not marks:
            quick.add(solver)
        params.append(pytest.param(folder, experiment, solver, id=f"{folder.name}-{experiment}-{solver}", marks=marks))
    metafunc.parametrize("folder, experiment, solver", params)


def test_the_recorded_sample(folder, experiment, solver):
    solved = run(folder, folder.meta["experiments"][experiment], SOLVERS[solver](folder.flow.config.num_blocks))
    assert bool(solved.converged)
    assert relative_error(channels_first(solved.x), folder.arrays[f"{experiment}/x"]) <= INVERSE_BAR
