"""Every solver gives the sequential answer as its tolerance goes to 0, for all kinds of flows and guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

from starflow_jax.flows import Guidance, LinearGuidance
from starflow_jax.solvers import (
    AffineStart,
    Jacobi,
    PerBlock,
    Sequential,
    SlidingJacobi,
    SlidingWindow,
    gs_jacobi,
    inverse,
    selective,
)

TEXT = normal((2, 3, 6), 3)
NULL = normal((1, 3, 6), 4)
STILL = (2, 3, 4, 2)
CLIP = (2, 4, 2, 2, 2)
TIGHT = {"tolerance": 1e-12, "max_iterations": 40}
GUESS = AffineStart((0.3, -0.2), (0.7, 1.1))


def solvers(blocks: int):
    return {
        "whole": Jacobi.whole(**TIGHT),
        "paper": Jacobi.paper(block=2, **TIGHT),
        "grouped": Jacobi(block=5, check_every=3, per_sample=True, start=GUESS, **TIGHT),
        "zero": Jacobi(block=5, start="zero", **TIGHT),
        "sliding": SlidingJacobi(window=5, tolerance=1e-6),
        "sliding guess": SlidingJacobi(window=40, tolerance=1e-6, start=GUESS),
        "gs": gs_jacobi(blocks, [0], modules=3, other_iterations=40, tolerance=1e-12, starts={blocks - 1: "zero"}),
        "selective": selective(blocks, **TIGHT),
        "mixed": PerBlock((SlidingJacobi(window=3, tolerance=0.0),) * (blocks - 1) + (Jacobi(block=4, **TIGHT),)),
    }


STILL_SOLVERS, CLIP_SOLVERS = solvers(2), solvers(3)


def cases(*names: str, slow: tuple[str, ...] = ()):
    """Names of solvers as parameters; those of `slow` are solved elsewhere by the quick tests, too."""
    return pytest.mark.parametrize("name", [*names, *(pytest.param(name, marks=pytest.mark.slow) for name in slow)])


@jax.jit(static_argnames=("solver", "window"))
def solve(flow, z, cond, solver=Sequential(), guidance=None, prefix=None, window=None):  # noqa: B008 (frozen)
    return inverse(flow, z, cond, solver=solver, guidance=guidance, prefix=prefix, window=window)


@pytest.fixture(scope="module")
def still():
    return random_flow(IMAGE)


@pytest.fixture(scope="module")
def clip():
    return random_flow(VIDEO)


@cases("grouped", "sliding guess", "gs", "selective", slow=("whole", "zero"))
def test_pictures_under_guidance(still, name):
    z, guidance = normal(STILL), Guidance(1.5, NULL)
    solved = solve(still, z, TEXT, STILL_SOLVERS[name], guidance)
    np.testing.assert_allclose(solved.x, solve(still, z, TEXT, guidance=guidance).x, atol=3e-5)
    assert bool(solved.converged)


@cases("paper", slow=("whole", "grouped", "sliding", "gs", "mixed"))
def test_video_after_given_frames(clip, name):
    video = normal(CLIP)
    z = clip.forward(video, TEXT).z
    solved = solve(clip, z.at[:, :1].set(99.0), TEXT, CLIP_SOLVERS[name], prefix=video[:, :1])
    np.testing.assert_array_equal(solved.x[:, :1], video[:, :1])
    np.testing.assert_allclose(solved.x, video, atol=5e-5)


@cases(slow=("grouped", "sliding", "mixed"))
def test_videos_longer_than_trained(name):
    """Blocks that all span frames, given frames, windows that repeat and one that is cut short."""
    flow = random_flow(dataclasses.replace(VIDEO, shallow_local=False))
    z, given, window = normal((2, 6, 2, 2, 2)), normal((2, 1, 2, 2, 2), 8), SlidingWindow(3, 1)
    exact = solve(flow, z, TEXT, prefix=given, window=window).x
    solved = solve(flow, z, TEXT, CLIP_SOLVERS[name], prefix=given, window=window)
    np.testing.assert_allclose(solved.x, exact, atol=5e-5)
    assert bool(solved.converged)


@cases(slow=("sliding", "whole", "grouped"))
def test_video_without_start_token(name):
    flow = random_flow(dataclasses.replace(VIDEO, sos=False))
    video = normal(CLIP)
    z = flow.forward(video, TEXT).z
    np.testing.assert_allclose(solve(flow, z, TEXT, CLIP_SOLVERS[name]).x, video, atol=5e-5)
    np.testing.assert_allclose(solve(flow, z, TEXT, CLIP_SOLVERS[name], prefix=video[:, :2]).x, video, atol=5e-5)


def test_learned_positions_and_guidance_that_grows_along_the_sequence():
    flow, z, labels = random_flow(CLASSES), normal((2, 4, 4, 1)), jnp.array([0, 2])
    guidance = LinearGuidance(0.7, annealed=True)
    exact = solve(flow, z, labels, guidance=guidance).x
    for solver in (SlidingJacobi(window=2, tolerance=0.0, start="zero"), Jacobi.whole(tolerance=0.0)):
        np.testing.assert_allclose(solve(flow, z, labels, solver, guidance=guidance).x, exact, atol=1e-5)


def test_selective_leaves_the_deep_block_to_the_sequential_solver(clip):
    deep, *shallow = solve(clip, normal(CLIP), TEXT, selective(3, **TIGHT)).reports
    assert deep.evaluations.tolist() == [4] * 4 and not deep.residual.any()
    assert all(report.lengths.tolist() == [4] for report in shallow)


def test_gs_jacobi_cuts_tough_blocks_into_equal_modules(clip):
    solver = gs_jacobi(3, {2}, modules=4, tough_iterations=3, other_iterations=2, tolerance=0.0)
    deep, *easy = solve(clip, normal(CLIP), TEXT, solver).reports
    assert deep.starts.tolist() == [0, 4, 8, 12] and deep.lengths.tolist() == [4] * 4
    assert deep.evaluations.tolist() == [3] * 4
    assert all(r.lengths.tolist() == [4] and r.evaluations.tolist() == [2] for r in easy)


def test_the_schedule_of_the_paper():
    lengths = [stage.length for stage in Jacobi.paper().plan(2048, 0, 128)]
    # Chunks that start within the first frame (its end included) are short.
    assert lengths == [64, 64, 64, 512, 512, 512, 320]
    assert [stage.length for stage in Jacobi().plan(1024, 0, 128)] == [64, 64, 64, 256, 256, 256, 64]


@pytest.mark.parametrize(
    "build, sentence",
    [
        (lambda: Jacobi(check_every=0), "jacobi.check_every must be an integer >= 1, got 0"),
        (lambda: Jacobi(start="last"), "jacobi.start must be one of 'noise', 'zero', 'frame', 'learned', got 'last'"),
        (lambda: SlidingJacobi(window=0), "sliding.window must be an integer >= 1, got 0"),
        (lambda: SlidingJacobi(tolerance=-1.0), "sliding.tolerance must be a finite number >= 0, got -1.0"),
        (lambda: AffineStart((0.0,), (1.0, 1.0)), "start.scale must have as many numbers as start.mean"),
        (lambda: AffineStart((0.0,), (float("inf"),)), "start.scale must be a finite number, got inf"),
        (lambda: PerBlock(()), "solver.solvers must name at least one solver"),
        (lambda: PerBlock(("jacobi",)), "solver.solvers must contain solvers, got 'jacobi'"),
        (lambda: gs_jacobi(2, [2]), "gs_jacobi.tough must name blocks 0 to 1, got 2"),
        (lambda: gs_jacobi(2, [0], starts={-1: "zero"}), "gs_jacobi.starts must name blocks 0 to 1, got -1"),
    ],
)
def test_impossible_settings_are_one_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


def test_solvers_that_do_not_fit_the_flow(clip):
    with pytest.raises(ValueError, match="a solver for each of the 3 blocks, got 2"):
        inverse(clip, jnp.zeros(CLIP), TEXT, solver=PerBlock((Sequential(), Sequential())))
    with pytest.raises(ValueError, match="each of the 2 channels of a token, got 1"):
        inverse(clip, jnp.zeros(CLIP), TEXT, solver=Jacobi(start=AffineStart((0.0,), (1.0,))))
