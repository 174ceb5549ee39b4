"""Solvers: exactness, honest reports, given frames, sliding windows, one program for any number of chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, forward, normal, random_flow

from starflow_jax.flows import Guidance, LinearGuidance
from starflow_jax.solvers import Jacobi, Sequential, SlidingWindow, inverse

TEXT = normal((2, 3, 6), 3)
NULL = normal((1, 3, 6), 4)
STILL = (2, 3, 4, 2)
CLIP = (2, 4, 2, 2, 2)


# The slow ones are what test_solvers_agree.py compares with this one, or combine both.
BOTH_KINDS_OF_BLOCKS = pytest.mark.parametrize(
    "local, solver",
    [
        (True, Sequential()),
        pytest.param(False, Jacobi(block=3, tolerance=1e-10, max_iterations=40), marks=pytest.mark.slow),
        pytest.param(True, Jacobi(block=3, tolerance=1e-10, max_iterations=40), marks=pytest.mark.slow),
        pytest.param(False, Sequential(), marks=pytest.mark.slow),
    ],
)


@jax.jit(static_argnames=("solver", "window"))
def solve(flow, z, cond, solver=Sequential(), guidance=None, prefix=None, window=None):  # noqa: B008 (frozen)
    return inverse(flow, z, cond, solver=solver, guidance=guidance, prefix=prefix, window=window)


@pytest.fixture(scope="module")
def still():
    return random_flow(IMAGE)


@pytest.fixture(scope="module")
def clip():
    return random_flow(VIDEO)


def test_as_many_jacobi_iterations_as_tokens_are_exact(still):
    z = normal(STILL)
    exact = solve(still, z, TEXT)
    whole = solve(still, z, TEXT, Jacobi(block=12, tolerance=0.0, max_iterations=12))
    np.testing.assert_allclose(whole.x, exact.x, atol=1e-5)


@pytest.mark.parametrize("guidance", [None, Guidance(1.5, NULL)])
def test_a_tight_tolerance_agrees_with_sequential(clip, guidance):
    z = normal(CLIP)
    exact = solve(clip, z, TEXT, guidance=guidance)
    tight = solve(clip, z, TEXT, Jacobi(block=3, growth=2, tolerance=1e-12, max_iterations=40), guidance)
    np.testing.assert_allclose(tight.x, exact.x, atol=2e-5)


def test_reports_say_what_happened(clip):
    z = normal(CLIP)
    one = solve(clip, z, TEXT, Jacobi(block=3, tolerance=1e-12, max_iterations=1))
    assert not bool(one.converged)
    assert [r.block for r in one.reports] == [2, 1, 0]
    deep = one.reports[0]
    # 4 tokens a frame: 3 tokens a chunk up to and including the start at the end of frame 0, then 12.
    assert deep.starts.tolist() == [0, 3, 6]
    assert deep.lengths.tolist() == [3, 3, 10]
    assert deep.evaluations.tolist() == [1, 1, 1]
    assert deep.iterations.tolist() == [[1, 1]] * 3
    assert int(one.evaluations) == 3 + 2 + 2
    many = solve(clip, z, TEXT, Jacobi(block=3, tolerance=1e-6, max_iterations=40))
    assert bool(many.converged)
    assert all(float(jnp.max(r.residual)) < 1e-6 for r in many.reports)


def test_nan_is_never_converged(still):
    z = normal(STILL).at[0, 0, 0, 0].set(jnp.nan)
    solved = solve(still, z, TEXT, Jacobi(block=12, max_iterations=3))
    assert not bool(solved.converged)
    assert int(solved.reports[0].evaluations[0]) == 3


def test_sequential_counts_one_evaluation_a_token(still):
    solved = solve(still, normal(STILL), TEXT)
    assert int(solved.evaluations) == 2 * 12
    assert bool(solved.converged)


@BOTH_KINDS_OF_BLOCKS
def test_given_frames_come_back_and_condition_the_rest(local, solver):
    """Inverting the noise of a whole video after any number of its own frames gives the video."""
    flow = random_flow(dataclasses.replace(VIDEO, shallow_local=local))
    video = normal(CLIP)
    z = forward(flow, video, TEXT).z
    for given in (1, 3):
        solved = solve(flow, z.at[:, :given].set(99.0), TEXT, solver, prefix=video[:, :given])
        np.testing.assert_array_equal(solved.x[:, :given], video[:, :given])
        np.testing.assert_allclose(solved.x, video, atol=5e-5)


def test_given_frames_without_start_token():
    flow = random_flow(dataclasses.replace(VIDEO, sos=False))
    video = normal(CLIP)
    z = forward(flow, video, TEXT).z
    solved = solve(flow, z, TEXT, prefix=video[:, :1])
    np.testing.assert_allclose(solved.x, video, atol=5e-5)


@pytest.mark.slow
@BOTH_KINDS_OF_BLOCKS
def test_each_sliding_window_is_a_video_of_the_model(local, solver):
    """With 7 frames, windows of 3 and a context of 1: the new frames of every window map to their own noise."""
    flow = random_flow(dataclasses.replace(VIDEO, shallow_local=local))
    z = normal((1, 6, 2, 2, 2))
    text = TEXT[:1]
    window = SlidingWindow(3, 1)
    solved = solve(flow, z, text, solver, window=window)
    # The states below a block are what entered it, so every block can be checked alone, window by window.
    for depth, report in enumerate(solved.reports):
        index = report.block
        noise, data = (flow.tokens_of(solved.states[depth + i]) for i in (0, 1))
        if flow.config.is_local(index):
            continue
        for first, last, fresh in ((0, 3, 3), (2, 5, 2), (4, 6, 1)):
            out, _, _ = flow.block_forward(index, data[:, first:last], text, _grid(flow, last - first), None, None)
            np.testing.assert_allclose(out[:, -fresh:], noise[:, last - fresh : last], atol=1e-4)
    assert [int(s) for s in solved.reports[0].starts][-1] >= 20


def _grid(flow, frames):
    from starflow_jax.flows.order import Grid

    return Grid.from_shape(flow.config, (1, frames, 2, 2, 2))


def test_a_window_as_long_as_the_video_changes_nothing(clip):
    z = normal(CLIP)
    plain = solve(clip, z, TEXT).x
    np.testing.assert_allclose(solve(clip, z, TEXT, window=SlidingWindow(4, 2)).x, plain, atol=1e-6)


def test_default_context_is_all_but_one_frame():
    assert SlidingWindow(5).num_context == 4


def test_guidance_of_weight_zero_is_none(still):
    z = normal(STILL)
    np.testing.assert_allclose(
        solve(still, z, TEXT, guidance=Guidance(0.0, NULL)).x, solve(still, z, TEXT).x, atol=1e-5
    )


def test_linear_guidance_of_weight_zero_is_none():
    flow, z, labels = random_flow(CLASSES), normal((2, 4, 4, 1)), jnp.array([0, 2])
    plain = solve(flow, z, labels).x
    np.testing.assert_allclose(solve(flow, z, labels, guidance=LinearGuidance(0.0)).x, plain, atol=1e-5)
    assert float(jnp.max(jnp.abs(solve(flow, z, labels, guidance=LinearGuidance(0.5)).x - plain))) > 1e-3


def test_a_label_of_minus_one_is_the_mean_embedding_in_the_inverse():
    flow, z = random_flow(CLASSES), normal((2, 4, 4, 1))
    np.testing.assert_allclose(solve(flow, z, jnp.array([-1, -1])).x, solve(flow, z, None).x, atol=1e-6)


def test_a_guided_forward_undoes_a_guided_inverse(still):
    z, guidance = normal(STILL), Guidance(1.0, NULL)
    x = solve(still, z, TEXT, guidance=guidance).x
    np.testing.assert_allclose(forward(still, x, TEXT, guidance).z, z, atol=1e-4)


def test_a_batch_equals_its_members(clip):
    z = normal(CLIP)
    together = solve(clip, z, TEXT).x
    for i in range(2):
        np.testing.assert_allclose(solve(clip, z[i : i + 1], TEXT[i : i + 1]).x[0], together[i], atol=1e-5)


def test_the_program_does_not_grow_with_chunks_or_tokens(clip):
    """Ten times the chunks are the same number of operations: loops on the device, nothing unrolled."""

    def size(frames: int, block: int) -> int:
        z = jnp.zeros((1, frames, 2, 2, 2))
        program = jax.make_jaxpr(lambda z: inverse(clip, z, TEXT[:1], solver=Jacobi(block=block)).x)(z)
        return _equations(program.jaxpr)

    assert size(20, 2) == size(5, 2)
    assert size(400, 2) == size(100, 2)  # attention over a long cache has a few branches
    sequential = [
        _equations(jax.make_jaxpr(lambda z: inverse(clip, z, TEXT[:1]).x)(jnp.zeros((1, t, 2, 2, 2))).jaxpr)
        for t in (2, 20)
    ]
    assert sequential[0] == sequential[1]


def _equations(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += 1 + sum(
            _equations(getattr(sub, "jaxpr", sub))
            for value in equation.params.values()
            for sub in (value if isinstance(value, (list, tuple)) else [value])
            if hasattr(getattr(sub, "jaxpr", sub), "eqns")
        )
    return total


def test_one_compilation_serves_every_call(clip):
    calls = []

    @jax.jit
    def run(z, text):
        calls.append(1)
        return inverse(clip, z, text, solver=Jacobi(block=3, max_iterations=2)).x

    for seed in range(3):
        run(normal(CLIP, seed), TEXT)
    assert len(calls) == 1
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"prefix": jnp.zeros((2, 4, 2, 2, 2))}, "1 <= P < 4"),
        ({"prefix": jnp.zeros((2, 1, 2, 3, 2))}, "prefix must be"),
        ({"prefix": jnp.zeros((2, 2, 2, 2, 2)), "window": SlidingWindow(2, 1)}, "shorter than window.frames=2"),
        ({"guidance": Guidance(1.0)}, "guidance.null"),
        ({"guidance": LinearGuidance(1.0)}, "LinearGuidance is only supported by family 'tarflow'"),
    ],
)
def test_contradictions_are_one_sentence(clip, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        inverse(clip, jnp.zeros(CLIP), TEXT, **arguments)


def test_given_frames_need_frames_in_order():
    flow = random_flow(dataclasses.replace(VIDEO, temporal_causal=False, shallow_local=False))
    with pytest.raises(ValueError, match="temporal_causal=True"):
        inverse(flow, jnp.zeros(CLIP), TEXT, prefix=jnp.zeros((2, 1, 2, 2, 2)))


@pytest.mark.parametrize(
    "build, sentence",
    [
        (lambda: SlidingWindow(4, 4), "window.context must be below window.frames=4, got 4"),
        (lambda: SlidingWindow(1), "window.frames must be an integer >= 2, got 1"),
        (lambda: Jacobi(block=0), "jacobi.block must be an integer >= 1, got 0"),
        (lambda: Jacobi(tolerance=float("nan")), "jacobi.tolerance must be a finite number >= 0, got nan"),
    ],
)
def test_impossible_settings_are_one_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
