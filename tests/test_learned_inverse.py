"""The learned inverse: its estimates are causal and approximate, and solvers that start from them are exact."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

from starflow_jax.core.config.learned_inverse_config import LearnedInverseConfig
from starflow_jax.flows import Guidance
from starflow_jax.flows.learned_inverse import LearnedInverse
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.parameters import split
from starflow_jax.solvers import Jacobi, OnePass, Sequential, SlidingWindow, inverse, verified
from starflow_jax.solvers.streaming.pipeline import FrameStream

NETWORK = LearnedInverseConfig(width=20, layers=1, head_dim=20, guided=True)
TEXT, NULL = normal((2, 3, 6), 3), normal((1, 3, 6), 4)
CLIP = (2, 4, 2, 2, 2)
TIGHT = verified(window=64, tolerance=1e-6)


def random_network(config, network=NETWORK, seed=1):
    """A network whose estimates are far from the flow's states."""
    learned = LearnedInverse(config, network, jax.random.key(seed))
    for step in [*(one for one in learned.steps if one is not None), learned.last]:
        kernel = step.proj_out.kernel
        kernel[...] = 0.3 * jax.random.normal(jax.random.key(seed + 1), kernel.shape)
    return learned


@jax.jit(static_argnames=("solver", "window"))
def solve(flow, z, cond, solver, learned=None, guidance=None, prefix=None, window=None):
    return inverse(flow, z, cond, solver=solver, learned=learned, guidance=guidance, prefix=prefix, window=window)


@jax.jit
def estimated(learned, noise, cond=None, weight=0.0, teacher=None):
    return learned(noise, cond, weight, teacher=teacher)


@pytest.fixture(scope="module")
def clip():
    return random_flow(VIDEO)


@pytest.fixture(scope="module")
def network():
    return random_network(VIDEO)


def test_a_new_network_estimates_every_state_by_the_noise():
    learned, noise = LearnedInverse(IMAGE, NETWORK, jax.random.key(0)), normal((2, 4, 4, 2))
    found = estimated(learned, noise, TEXT, 1.0)
    for state in (*found.states, found.clean):
        np.testing.assert_array_equal(state, noise)


def test_estimates_of_a_frame_depend_on_it_and_on_earlier_ones_alone(network):
    noise = normal((2, 4, 4, 4, 2))
    change = jax.jit(jax.jacfwd(lambda added: network(noise.at[:, 2].add(added), TEXT, 1.0)))(0.0)
    for state in (*change.states[:-1], change.clean):
        moved = np.abs(state).max(axis=(0, 2, 3, 4))
        assert (moved[:2] == 0).all() and (moved[2:] > 0).all()


@pytest.mark.slow
def test_estimates_depend_on_caption_class_and_guidance():
    noise = normal((2, 4, 4, 2))
    learned = random_network(IMAGE)
    first = estimated(learned, noise, TEXT, 1.0).clean
    assert np.abs(estimated(learned, noise, TEXT + 1.0, 1.0).clean - first).min() > 0
    assert np.abs(estimated(learned, noise, TEXT, 2.0).clean - first).min() > 0
    learned, noise = random_network(CLASSES, LearnedInverseConfig(width=8, head_dim=8)), normal((2, 2, 2, 4))
    estimates = [
        estimated(learned, noise, labels).clean for labels in (None, jnp.asarray([-1, -1]), jnp.asarray([0, 2]))
    ]
    np.testing.assert_array_equal(estimates[0], estimates[1])
    assert np.abs(estimates[2] - estimates[0]).max() > 0


def test_given_states_replace_the_estimates_of_earlier_transformers(network):
    states = tuple(normal((2, 4, 4, 4, 2), seed) for seed in range(4))
    found = estimated(network, states[-1], TEXT, teacher=states)
    own = estimated(network, states[-1], TEXT)
    np.testing.assert_array_equal(found.states[2], own.states[2])  # the first one reads the noise in both
    assert np.abs(found.states[0] - own.states[0]).max() > 0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"prefix": normal((2, 1, 4, 4, 2), 9)},
        pytest.param({"guidance": Guidance(1.5, NULL), "prefix": normal((2, 1, 4, 4, 2), 9)}, marks=pytest.mark.slow),
        pytest.param({"window": SlidingWindow(3, 1)}, marks=pytest.mark.slow),
    ],
    ids=["plain", "after a frame", "guided, after a frame", "windows"],
)
def test_the_verified_answer_is_exact_whatever_is_proposed(clip, network, options):
    z = normal((2, 6, 4, 4, 2) if "window" in options else (2, 4, 4, 4, 2))
    exact = solve(clip, z, TEXT, Sequential(), **options)
    found = solve(clip, z, TEXT, TIGHT, network, **options)
    assert bool(found.converged)
    np.testing.assert_allclose(found.x, exact.x, atol=5e-5)


@pytest.mark.slow
def test_other_solvers_start_from_the_estimates_too(clip, network):
    z = normal((2, 4, 4, 4, 2))
    exact = solve(clip, z, TEXT, Sequential())
    found = solve(clip, z, TEXT, Jacobi.whole(start="learned", tolerance=1e-12, max_iterations=64), network)
    np.testing.assert_allclose(found.x, exact.x, atol=5e-5)


@pytest.mark.slow
def test_a_network_that_is_not_finite_changes_no_answer(clip):
    broken = random_network(VIDEO)
    broken.last.proj_out.kernel[...] = jnp.nan * broken.last.proj_out.kernel[...]
    for step in broken.steps:
        step.proj_out.kernel[...] = jnp.full_like(step.proj_out.kernel[...], jnp.nan)
    z = normal((2, 4, 4, 4, 2))
    np.testing.assert_allclose(solve(clip, z, TEXT, TIGHT, broken).x, solve(clip, z, TEXT, Sequential()).x, atol=5e-5)


class _Oracle(LearnedInverse):
    """A network that knows the flow's own states."""

    def propose(self, index, stream, state):
        return stream, self.flow_states[index]


def test_exact_proposals_are_verified_by_one_evaluation_a_block(clip):
    out = jax.jit(lambda flow, x: flow.forward(x, TEXT))(clip, normal((2, 4, 4, 4, 2)))
    oracle = _Oracle(VIDEO, NETWORK, jax.random.key(0))
    oracle.flow_states = nnx.data(out.tokens)
    found = solve(clip, out.z, TEXT, verified(window=64, tolerance=1e-3), oracle)
    per_block = [int(jnp.sum(report.evaluations)) for report in found.reports]
    assert per_block == [2, 2, 2]  # the proposal and its verification
    np.testing.assert_allclose(found.x, normal((2, 4, 4, 4, 2)), atol=1e-3)


def test_one_pass_is_the_network_alone(clip, network):
    z = normal((2, 4, 4, 4, 2))
    found = solve(clip, z, TEXT, OnePass(), network)
    estimates = estimated(network, clip.tokens_of(z), TEXT)
    np.testing.assert_allclose(found.x, clip.data_of(estimates.states[0]), atol=1e-5)
    np.testing.assert_allclose(found.clean, clip.data_of(estimates.clean), atol=1e-5)
    assert int(found.evaluations) == 3
    assert np.isnan([np.asarray(report.residual) for report in found.reports]).all()


def test_given_frames_stay_in_one_pass(clip, network):
    prefix = normal((2, 2, 4, 4, 2), 9)
    found = solve(clip, normal((2, 4, 4, 4, 2)), TEXT, OnePass(), network, prefix=prefix)
    np.testing.assert_array_equal(found.x[:, :2], prefix)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, window", [(0, None), (2, SlidingWindow(3, 1))], ids=["plain", "after frames, in windows"]
)
def test_a_stream_starts_from_the_estimates_too(clip, network, given, window):
    z, guidance = normal((2, 6, 4, 4, 2)), Guidance(1.5, NULL)
    prefix = normal((2, given, 4, 4, 2), 9) if given else None
    exact = solve(clip, z, TEXT, Sequential(), guidance=guidance, prefix=prefix, window=window)
    options = {"given": given, "solver": TIGHT, "guidance": guidance, "window": window}
    learned = LearnedParams(split(network)[1], NETWORK)
    stream = FrameStream(split(clip)[1], VIDEO, z.shape, TEXT, learned=learned, **options)
    stream.compile()
    groups = stream.run(z, prefix, lambda first, frames: (first, [np.asarray(frame) for frame in frames]))
    frames = {first + i: frame for first, group in groups for i, frame in enumerate(group)}
    assert list(frames) == list(range(given, 6))
    np.testing.assert_allclose(np.stack(list(frames.values()), axis=1), exact.x[:, given:], atol=5e-5)


def test_a_stream_draws_no_estimates(clip, network):
    learned = LearnedParams(split(network)[1], NETWORK)
    with pytest.raises(ValueError, match="a stream draws exact frames only; solver must not be 'one-pass'"):
        FrameStream(split(clip)[1], VIDEO, (2, 6, 4, 4, 2), TEXT, solver=OnePass(), learned=learned)


def test_a_stream_that_reads_estimates_needs_them(clip):
    with pytest.raises(ValueError, match="needs the learned inverse of the flow, got learned=None"):
        FrameStream(split(clip)[1], VIDEO, (2, 6, 4, 4, 2), TEXT, solver=verified())


def test_a_solver_that_reads_estimates_needs_them(clip):
    with pytest.raises(ValueError, match="needs the learned inverse of the flow, got learned=None"):
        inverse(clip, normal((2, 4, 4, 4, 2)), TEXT, solver=verified())


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"width": 30}, "network.head_dim must divide network.width, got 20 and 30"),
        ({"layers": 0}, "network.layers must be an integer >= 1, got 0"),
    ],
)
def test_impossible_networks_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(NETWORK, **changes)


def test_a_head_dimension_must_suit_the_rotary_axes():
    with pytest.raises(ValueError, match="head_dim must be 4k >= 20 for three rotary axes, got 8"):
        LearnedInverse(VIDEO, LearnedInverseConfig(width=8, head_dim=8), jax.random.key(0))
