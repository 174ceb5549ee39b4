"""Solvers that the originals do not have, at a tight tolerance, against what the originals recorded."""

import pytest
from inversions import INVERSE_BAR, run
from recordings import Folder, channels_first, relative_error

from starflow_jax.solvers import Jacobi, SlidingJacobi, gs_jacobi, selective

SOLVERS = {
    "sliding": lambda blocks: SlidingJacobi(window=10, tolerance=1e-6),
    "whole": lambda blocks: Jacobi.whole(tolerance=1e-12, max_iterations=400, per_sample=True),
    "gs": lambda blocks: gs_jacobi(blocks, [0, blocks - 1], modules=5, tolerance=1e-12, other_iterations=400),
    "selective": lambda blocks: selective(blocks, tolerance=1e-12, start="zero"),
}
# Recorded by the sequential solver, or by a tight Jacobi iteration where the originals have no other.
RECORDED = {
    ("starflow_video", "reverse_cfg"): ("sliding", "whole", "gs"),
    ("starflow_video", "i2v_reverse_cfg"): ("sliding", "selective"),
    ("starflow_video", "long_w3c2_tight"): ("sliding", "gs"),
    ("starflow_video_global", "i2v_reverse_cfg"): ("sliding", "whole"),
    ("starflow_exp_nosos", "nonsquare_reverse"): ("sliding", "whole", "gs"),
}
CASES = [(*recorded, name) for recorded, names in RECORDED.items() for name in names]


@pytest.mark.parametrize("recorded, experiment, name", CASES)
def test_the_recorded_sample(goldens_dir, recorded, experiment, name):
    folder = Folder(goldens_dir / recorded)
    solved = run(folder, folder.meta["experiments"][experiment], SOLVERS[name](folder.flow.config.num_blocks))
    assert bool(solved.converged)
    assert relative_error(channels_first(solved.x), folder.arrays[f"{experiment}/x"]) <= INVERSE_BAR
