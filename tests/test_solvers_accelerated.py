"""The secant solver: the sequential answer, finite termination, fewer evaluations than Jacobi, honest reports."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

from starflow_jax.flows import Guidance
from starflow_jax.flows.affine import Affine
from starflow_jax.nn.cache import KVCache
from starflow_jax.solvers import Jacobi, Secant, Sequential, SlidingWindow, inverse

TEXT = normal((2, 3, 6), 3)
NULL = normal((1, 3, 6), 4)
STILL = (2, 3, 4, 2)
CLIP = (2, 4, 2, 2, 2)
EXACT = Secant(tolerance=1e-12, lags=(1, 2), pool=3)
CHUNKS = dataclasses.replace(EXACT, block=3, growth=2, start="frame")


@jax.jit(static_argnames=("solver", "window"))
def solve(flow, z, cond, solver, guidance=None, prefix=None, window=None):
    return inverse(flow, z, cond, solver=solver, guidance=guidance, prefix=prefix, window=window)


def agree(flow, z, cond, solver, **options):
    exact = solve(flow, z, cond, Sequential(), **options)
    solved = solve(flow, z, cond, solver, **options)
    np.testing.assert_allclose(solved.x, exact.x, atol=3e-5)
    assert bool(solved.converged)


@pytest.mark.parametrize("solver", [EXACT, pytest.param(CHUNKS, marks=pytest.mark.slow)], ids=["whole", "chunks"])
def test_agrees_with_sequential_under_guidance(solver):
    agree(random_flow(VIDEO), normal(CLIP), TEXT, solver, guidance=Guidance(1.0, NULL))


@pytest.mark.slow  # test_solvers_agree.py solves after given frames
def test_agrees_after_given_frames_and_in_windows():
    flow = random_flow(VIDEO)
    video = normal(CLIP)
    agree(flow, flow.forward(video, TEXT).z, TEXT, CHUNKS, prefix=video[:, :1], window=SlidingWindow(3, 1))


@pytest.mark.parametrize("config, cond", [(IMAGE, TEXT), (CLASSES, jnp.array([0, 2]))], ids=["starflow", "tarflow"])
def test_agrees_on_stills(config, cond):
    agree(random_flow(config), normal(STILL if config is IMAGE else (2, 4, 4, 1)), cond, EXACT)


def toy(bands, power):
    """x_i = sum over lags of sin(power x_(i - lag)) A / power + z_i / 2; the cache is all that was ever read."""

    def predict(previous, first, cache):
        history = jax.lax.dynamic_update_slice_in_dim(cache, previous, first, axis=1)
        mean = jnp.zeros_like(previous)
        for lag, weight in bands.items():
            padded = jnp.pad(history, ((0, 0), (lag - 1, 0), (0, 0)))  # slot s has read token s - 1
            read = jax.lax.dynamic_slice_in_dim(padded, first, previous.shape[1], axis=1)
            mean = mean + jnp.sin(power * read) / power @ jnp.asarray(weight, jnp.float32)
        return Affine(mean, jnp.full_like(mean, 0.5)), history

    return predict


def toy_solve(solver, predict, z):
    padding = solver.padding(z.shape[1], 0, z.shape[1])
    # The keys of the cache are the tokens that `toy` has read.
    cache = KVCache(jnp.zeros((z.shape[0], z.shape[1] + padding, z.shape[2])), jnp.zeros(()))
    known = jnp.zeros((z.shape[0], 1, z.shape[2]))

    def read(previous, first, cache):
        affine, history = predict(previous, first, cache.keys)
        return affine, dataclasses.replace(cache, keys=history)

    return jax.jit(lambda z: solver(read, z, known, cache, start=0, frame=z.shape[1]))(z)


MIX = np.array([[0.6, 0.5], [-0.4, 0.7]])


@pytest.mark.parametrize(
    "bands, lags", [({1: MIX}, (1,)), ({1: 0.6 * MIX, 6: 0.4 * MIX}, (1, 6))], ids=["chain", "rows"]
)
def test_halves_the_evaluations_where_errors_travel_along_its_lags(bands, lags):
    z, predict = normal((2, 60, 2)), toy(bands, power=0.3)
    exact = toy_solve(Sequential(), predict, z).x
    secant = toy_solve(Secant(tolerance=1e-8, lags=lags, pool=20, sweeps=20), predict, z)
    jacobi = toy_solve(Jacobi.whole(tolerance=1e-8, max_iterations=64, start="noise"), predict, z)
    for solved in (secant, jacobi):
        assert bool(solved.report.converged.all())
        np.testing.assert_allclose(solved.x, exact, atol=1e-3)
    assert int(secant.report.evaluations[0]) <= 0.5 * int(jacobi.report.evaluations[0])
    assert int(secant.report.tokens[0]) == int(secant.report.evaluations[0]) * 60 * 2


def test_as_many_iterations_as_tokens_always_suffice():
    """A wild map (slopes near 2 that change sign): whatever is fitted, the exact prefix grows by a token each time."""
    z, predict = normal((2, 12, 2)), toy({1: 2.0 * MIX, 2: MIX}, power=3.0)
    exact = toy_solve(Sequential(), predict, z).x
    for most in (5, 12):
        solver = Secant(tolerance=0.0, max_iterations=most, lags=(1, 2), pool=4)
        solved = toy_solve(solver, predict, z)
        np.testing.assert_allclose(solved.x[:, :most], exact[:, :most], atol=1e-4)
        assert bool(solved.report.converged.all()) == (most == 12)
        assert solved.report.iterations.tolist() == [[most, most]]


def test_a_settled_sample_stops_and_a_nan_never_settles():
    z, predict = normal((3, 20, 2)), toy({1: MIX}, power=1.5)
    z = z.at[1].set(0.0).at[2, 4].set(jnp.nan)
    report = toy_solve(Secant(tolerance=1e-8, max_iterations=30), predict, z).report
    assert report.converged[0].tolist() == [True, True, False]
    assert report.iterations[0, 1] < report.iterations[0, 0] < report.iterations[0, 2] == 30


def test_samples_do_not_influence_each_other():
    z, predict = normal((3, 20, 2)), toy({1: MIX}, power=1.5)
    together = toy_solve(Secant(tolerance=1e-8), predict, z)
    alone = toy_solve(Secant(tolerance=1e-8), predict, z[1:2])
    assert together.report.iterations[0, 1] == alone.report.iterations[0, 0]
    np.testing.assert_allclose(together.x[1], alone.x[0], atol=1e-5)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"lags": ()}, r"secant.lags must name at least one distance, each once, got \(\)"),
        ({"lags": (1, 0)}, "secant.lags must be an integer >= 1, got 0"),
        ({"forget": 1.0}, "secant.forget must be below 1, got 1.0"),
        ({"ridge": 0.0}, "secant.ridge must be above 0, got 0.0"),
    ],
)
def test_impossible_settings_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Secant(**options)
