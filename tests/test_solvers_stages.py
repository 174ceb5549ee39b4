"""Solving stage by stage: same answer as at once, honest reports of every sample, programs that stay small."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import VIDEO, normal, random_flow

from starflow_jax.flows import Guidance
from starflow_jax.flows.affine import Affine
from starflow_jax.flows.order import Grid
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers import BlockTask, Jacobi, Secant, Sequential, SlidingJacobi, SlidingWindow, inverse

TEXT = normal((2, 3, 6), 3)
GUIDANCE = Guidance(1.5, normal((1, 3, 6), 4))
CLIP = (2, 4, 2, 2, 2)
DEEP = 2
SAMPLEWISE = [
    Sequential(),
    Jacobi(block=3, tolerance=1e-5, per_sample=True),
    Jacobi(block=3, tolerance=1e-5, per_sample=True, check_every=2),
]


@jax.jit(static_argnames=("solver", "window"))
def solve(flow, z, cond, solver=Sequential(), window=None):  # noqa: B008 (frozen)
    return inverse(flow, z, cond, solver=solver, window=window)


@pytest.fixture(scope="module")
def clip():
    return random_flow(VIDEO)


@pytest.mark.parametrize("given", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(Sequential(), marks=pytest.mark.slow),
        Jacobi(block=2, growth=3, tolerance=1e-4),
        pytest.param(SlidingJacobi(window=6, tolerance=1e-2), marks=pytest.mark.slow),
    ],
)
def test_a_stream_is_the_batch(clip, solver, given):
    """Compiled once per kind of stage; every stage's tokens are final when it ends; the same numbers as at once."""
    frames, frame = 6, 4
    grid = Grid.from_shape(VIDEO, (2, frames, 2, 2, 2))
    task = BlockTask(clip, TEXT, GUIDANCE, None, index=DEEP, grid=grid, solver=solver)
    tokens = clip.tokens_of(normal((2, frames, 2, 2, 2)))
    z = clip.to_block(DEEP, tokens, grid)
    context = normal((2, given * frame, 2), 5) if given else None
    span = task.span((frames - given) * frame, start=given * frame, context=given * frame)
    z = z[:, given * frame :]
    exact, batch = jax.jit(lambda: span.solve(z, context))()

    traced = []

    @jax.jit(static_argnames="kind")
    def step(span, state, first, length, kind):
        traced.append(kind)
        return span.advance(state, first, length, kind=kind)

    state = jax.jit(lambda span: span.begin(z, context))(span)
    for number, stage in enumerate(span.plan):
        state, report = step(span, state, jnp.int32(stage.first), jnp.int32(stage.length), kind=stage.kind)
        done = stage.first + stage.length
        np.testing.assert_allclose(state.x[:, :done], exact[:, :done], atol=1e-6)
        for name in ("iterations", "evaluations", "tokens", "converged"):
            np.testing.assert_array_equal(getattr(report, name), getattr(batch, name)[number])
    assert done == exact.shape[1]
    assert len(traced) == len({stage.kind for stage in span.plan}) <= 2


def test_a_frame_is_a_stage(clip):
    assert [s[:2] for s in Sequential().plan(10, 0, 4)] == [(0, 4), (4, 4), (8, 2)]
    # One that has begun is completed first.
    assert [s[:2] for s in SlidingJacobi().plan(11, 1, 4)] == [(0, 3), (3, 4), (7, 4)]
    assert [s[:2] for s in SlidingJacobi().plan(2, 5, 4)] == [(0, 2)]


@pytest.mark.parametrize(
    "solver", [SAMPLEWISE[0], *(pytest.param(solver, marks=pytest.mark.slow) for solver in SAMPLEWISE[1:])]
)
def test_freezing_samples_equals_solving_each_alone(clip, solver):
    """Iterations, residuals and values, in blocks that fold frames into the batch as well."""
    z = normal(CLIP) * jnp.array([0.3, 4.0])[:, None, None, None, None]
    together = solve(clip, z, TEXT, solver)
    spread = 0
    for i in range(2):
        alone = solve(clip, z[i : i + 1], TEXT[i : i + 1], solver)
        np.testing.assert_allclose(together.x[i], alone.x[0], atol=1e-6)
        for ours, theirs in zip(together.reports, alone.reports, strict=True):
            np.testing.assert_array_equal(ours.iterations[:, i], theirs.iterations[:, 0])
            np.testing.assert_allclose(ours.residual[:, i], theirs.residual[:, 0], rtol=2e-2, atol=1e-9)
            np.testing.assert_array_equal(theirs.iterations[:, 0], theirs.evaluations)
            spread += int(jnp.sum(ours.iterations[:, i] < ours.evaluations))
    assert (spread > 0) == isinstance(solver, Jacobi)  # some sample waited, settled, for the other


def test_groups_of_iterations_stop_at_the_first_look_that_is_good(clip):
    z = normal(CLIP)
    one = solve(clip, z, TEXT, Jacobi(block=8, tolerance=1e-6)).reports[0]
    three = solve(clip, z, TEXT, Jacobi(block=8, tolerance=1e-6, check_every=3)).reports[0]
    first = int(one.evaluations[0])
    assert int(three.evaluations[0]) == -(-first // 3) * 3
    # The k-th look measures the 3k-th iteration.
    np.testing.assert_allclose(three.residuals[0, 0], one.residuals[0, 2], rtol=1e-3)


def test_what_is_counted(clip):
    solved = solve(clip, normal(CLIP), TEXT, Jacobi(block=3, tolerance=0.0, max_iterations=2))
    deep, *shallow = solved.reports
    # Chunks of 3, 3 and 10 tokens of 2 videos; the blocks inside frames see 8 frames of 3 and 1 tokens, run as 3.
    assert deep.tokens.tolist() == [2 * 3 * 2, 2 * 3 * 2, 2 * 10 * 2]
    assert all(report.tokens.tolist() == [2 * 3 * 8] * 2 for report in shallow)
    assert int(solved.evaluations) == 6 + 4 + 4
    assert int(solved.tokens) == 64 + 96 + 96
    for report in solved.reports:
        assert report.iterations.shape == report.residual.shape == report.converged.shape == (len(report.starts), 2)


@pytest.mark.parametrize(
    "solver",
    [*SAMPLEWISE[:2], pytest.param(SAMPLEWISE[2], marks=pytest.mark.slow), SlidingJacobi(window=5, tolerance=1e-4)],
)
def test_a_lost_sample_is_never_converged_and_takes_nobody_along(clip, solver):
    z = normal(CLIP)
    lost = solve(clip, z.at[0, 1].set(jnp.nan), TEXT, solver)
    whole = solve(clip, z, TEXT, solver)
    deep = lost.reports[0]
    ends = np.asarray(deep.starts + deep.lengths)
    np.testing.assert_array_equal(deep.converged[:, 0], ends <= 4)  # frame 1 begins at token 4
    assert bool(jnp.isnan(lost.x[0]).any()) and not bool(lost.converged)
    assert all(bool(report.converged[:, 1].all()) for report in lost.reports)
    np.testing.assert_allclose(lost.x[1], whole.x[1], atol=1e-3)


def test_an_estimate_that_overflows_does_not_spoil_the_solution():
    """x_i = z_i + 1e30 (x_{i-1} - 1)^2 with solution 1: iteration from elsewhere passes through infinity."""

    def predict(inputs, first, cache):
        # As attention does: what is hidden has weight 0, and 0 times infinity is not 0.
        poison = 0.0 * jnp.sum(inputs, axis=1, keepdims=True)
        return Affine(1e30 * (inputs - 1.0) ** 2 + poison, jnp.ones_like(inputs)), cache

    for solver in (
        Jacobi.whole(tolerance=0.0, start="zero"),
        SlidingJacobi(window=4, tolerance=0.0),
        Secant(tolerance=0.0, start="zero"),
    ):
        solved = solver(
            predict, jnp.ones((1, 6, 1)), jnp.ones((1, 1, 1)), _no_cache(), start=0, frame=6
        )  # fmt: skip
        np.testing.assert_array_equal(solved.x, jnp.ones((1, 6, 1)))
        assert bool(solved.report.converged.all())


def _no_cache():
    return KVCache.empty(1, 1, 1, 1, 1, "float32")


def _chain(a):
    """x_i = a x_{i-1} + z_i."""
    return lambda inputs, first, cache: (Affine(a * inputs, jnp.ones_like(inputs)), cache)


def test_a_window_of_settled_tokens_is_committed_at_once():
    """The identity map started from its noise: nothing ever moves, and every evaluation commits a window."""
    z = normal((2, 12, 3))
    solved = SlidingJacobi(window=4, tolerance=0.0)(_chain(0.0), z, z[:, :1], _no_cache(), start=0, frame=12)
    assert int(solved.report.evaluations[0]) == 3
    np.testing.assert_array_equal(solved.x, z)


def test_a_window_of_one_token_is_the_sequential_solver():
    z = normal((2, 12, 3))
    arguments = (_chain(0.9), z, z[:, :1], _no_cache())
    slid = SlidingJacobi(window=1)(*arguments, start=0, frame=12)
    exact = Sequential()(*arguments, start=0, frame=12)
    assert int(slid.report.evaluations[0]) == 12
    np.testing.assert_allclose(slid.x, exact.x, rtol=1e-5, atol=1e-6)


def test_sliding_never_takes_more_evaluations_than_tokens_and_bounds_its_error():
    """In a chain each commit adds at most the tolerance, and a factor a carries it on: error <= tolerance / (1 - a)."""
    z = normal((1, 60, 1))
    arguments = (_chain(0.7), z, z[:, :1], _no_cache())
    exact = Sequential()(*arguments, start=0, frame=60)
    scale = float(jnp.abs(exact.x).max())
    spent = []
    for tolerance in (0.0, 1e-3, 1e-1):
        solved = SlidingJacobi(window=16, tolerance=tolerance)(*arguments, start=0, frame=60)
        spent.append(int(solved.report.evaluations[0]))
        assert float(jnp.abs(solved.x - exact.x).max()) <= tolerance * scale / 0.3 + 1e-6
    assert 60 >= spent[0] >= spent[1] > spent[2]
    assert spent[2] <= 30  # on average it slides by two tokens and more


def test_tokens_enter_the_window_as_one_frame_before():
    """A video at rest after a given frame: every frame is guessed right, and one evaluation finds that out."""
    frame, frames = 4, 5
    still = normal((1, frame, 2))
    known = jnp.concatenate([jnp.full((1, 1, 2), jnp.nan), still], axis=1)  # the start token is nobody's guess
    video = jnp.tile(still, (1, frames, 1))
    z = video - 0.5 * jnp.concatenate([still[:, -1:], video[:, :-1]], axis=1)
    for start, least, most in (("frame", 1, 1), ("noise", 2, 4)):
        solver = SlidingJacobi(window=frame, tolerance=1e-5, start=start)
        solved = solver(_chain(0.5), z, known, _no_cache(), start=frame, frame=frame)
        np.testing.assert_allclose(solved.x, video, atol=1e-4)
        assert least <= solved.report.evaluations.min() and solved.report.evaluations.max() <= most


COMPILED = [Sequential(), Jacobi(block=16, growth=1, per_sample=True), SlidingJacobi(window=8), Secant(block=16)]


@pytest.mark.parametrize("solver", COMPILED, ids=lambda solver: type(solver).__name__)
def test_the_compiled_loop_updates_the_cache_in_place(solver):
    """No copy of a cache inside a loop, and no array of tokens x tokens, in what XLA made of the program."""
    flow = random_flow(dataclasses.replace(VIDEO, num_blocks=1, layers_per_block=3, shallow_local=False))
    frames, text = 5, 3
    tokens = frames * 16
    z = jnp.zeros((2, frames, 4, 4, 2))
    program = jax.jit(lambda z: inverse(flow, z, TEXT, solver=solver).x).lower(z).compile().as_text()
    loops = program.split("\nENTRY ")[0]
    slots = -(-(text + tokens + solver.padding(tokens, 0, 16)) // 8) * 8  # whole lines
    cache = rf"f32\[3,2,2,{slots},20\]"
    assert re.search(rf"= {cache}\S* dynamic-update-slice\(", loops)  # the shape is the cache's
    made = set(re.findall(rf"= {cache}\S* ([\w-]+)\(", loops))
    assert made <= {"parameter", "get-tuple-element", "dynamic-update-slice", "bitcast", "broadcast", "fusion"}, made
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"(?:pred|[fs]\d+)\[([\d,]+)\]", program)}
    assert not [shape for shape in shapes if sum(n >= tokens for n in shape) > 1]


@pytest.mark.slow  # test_sampling_video.py draws a second video by the command's own programs
def test_a_second_video_of_the_same_shape_compiles_nothing(clip):
    run = jax.jit(lambda flow, z, text: inverse(flow, z, text, solver=SlidingJacobi(6), window=SlidingWindow(3, 1)).x)
    for seed in range(2):
        run(clip, normal((2, 6, 2, 2, 2), seed), TEXT)
    assert run._cache_size() == 1
