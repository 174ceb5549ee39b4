"""Exact likelihood at every noise level: evaluation, sweeps, the Python interface; and the one-pass classifier."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, normal, random_flow
from sweep_runs import Heard, params_of, write_arrays, write_run

import starflow_jax as sf
from starflow_jax.core.config import DataConfig
from starflow_jax.core.config.sweep_config import SweepConfig, SweepRun
from starflow_jax.core.request_errors import RequestError
from starflow_jax.evaluation.evaluation_requests import EvaluateRequest, StudyRequest
from starflow_jax.evaluation.likelihood.image_likelihood import dequantised
from starflow_jax.evaluation.likelihood.one_pass_classifier import class_gradients, classify_by_gradient
from starflow_jax.evaluation.likelihood.run_scores import evaluate_run
from starflow_jax.evaluation.likelihood.scored_source import scored_level
from starflow_jax.flows.guidance import LinearGuidance
from starflow_jax.sweeps import make_plan, read_results, run_sweep
from starflow_jax.training import load_run

SPAN = (0.01, 0.5)
FLOW = dataclasses.replace(CLASSES, noise_levels=SPAN)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("levels")
    data = DataConfig(source="npz", path=str(write_arrays(home / "data", IMAGES)), noise="gaussian", noise_std=0.5)
    write_run(home / "run", FLOW, data, {4: params_of(random_flow(FLOW))})
    write_run(home / "plain", CLASSES, data, {4: params_of(random_flow(CLASSES))})
    return home


def bits_at(flow, level):
    x = dequantised(jax.random.key(0), jnp.asarray(IMAGES), jnp.arange(6), 0, 256)
    return float(jnp.mean(_bits(flow, x, level)))


@jax.jit
def _bits(flow, x, level):
    return flow.bits_per_dim(x, jnp.arange(6) % 3, noise_level=level)


def test_evaluation_is_at_the_lowest_level_or_at_the_one_that_is_asked_for(home):
    flow = random_flow(FLOW)
    for level, asked in ((0.01, None), (0.2, 0.2)):
        found = evaluate_run(EvaluateRequest(home / "run", draws=1, noise_level=asked))
        assert found.scores.bits_per_dim.mean == pytest.approx(bits_at(flow, level), rel=1e-5)
        assert found.noise_level == level and found.to_dict()["noise_level"] == level


def test_levels_that_a_flow_does_not_have_are_refused(home):
    config, plain = (load_run(home / name)[0] for name in ("run", "plain"))
    assert scored_level(plain, None) is None
    with pytest.raises(RequestError, match=r"must be from 0.01 to 0.5, got 0.6"):
        scored_level(config, 0.6)
    with pytest.raises(RequestError, match=r"requires a run with flow.noise_levels"):
        scored_level(plain, 0.2)
    for request in (EvaluateRequest, StudyRequest):
        with pytest.raises(RequestError, match="must be a finite number above 0, got nan"):
            request(home / "run", noise_level=float("nan"))
    run = sf.from_pretrained(home / "run")
    with pytest.raises(ValueError, match=r"noise_level must be from 0.01 to 0.5, got 0.001"):
        sf.log_prob(run, normal((2, 4, 4, 1)), noise_level=0.001)
    with pytest.raises(ValueError, match=r"noise must be from 0.01 to 0.5, the noise levels of run run"):
        make_plan(SweepConfig("test", (SweepRun(str(home / "run")),), noise=("uniform", 0.7)))


@pytest.mark.slow
def test_a_sweep_reads_the_level_of_its_noise(home, tmp_path):
    config = SweepConfig("test", (SweepRun(str(home / "run")),), noise=("uniform", 0.1, "trained"), draws=1)
    outcome = run_sweep(make_plan(config), tmp_path / "out", watcher=Heard())
    assert outcome.programs == 1
    rows = {row["sigma"]: row for row in read_results(tmp_path / "out")}
    assert rows[0.0]["bits_per_dim"] == pytest.approx(bits_at(random_flow(FLOW), 0.01), rel=1e-5)
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), i) for i in range(6)]
    x = IMAGES * (2 / 255) - 1 + 0.1 * np.stack([jax.random.normal(key, (4, 4, 1)) for key in keys])
    expected = random_flow(FLOW).bits_per_dim(jnp.asarray(x, jnp.float32), jnp.arange(6) % 3, noise_level=0.1)
    assert rows[0.1]["bits_per_dim"] == pytest.approx(float(jnp.mean(expected)), rel=1e-4)
    assert 0.5 in rows


@pytest.mark.parametrize("level", [None, pytest.param(0.05, marks=pytest.mark.slow)])
def test_one_pass_is_the_gradient_by_finite_differences_over_every_class(level):
    flow, x, h = random_flow(CLASSES if level is None else FLOW), normal((5, 4, 4, 1)), 0.05

    @jax.jit
    def both(x):
        found = class_gradients(flow, x, noise_level=level)

        def log_p(logits):
            weights = jnp.broadcast_to(jax.nn.softmax(logits), (5, 3))
            return flow.log_prob(x, weights, noise_level=level)

        ahead, behind = (jax.lax.map(log_p, sign * h * jnp.eye(3)) for sign in (1, -1))
        return found, ((ahead - behind) / (2 * h)).T, flow.log_prob(x, None, noise_level=level)

    (log_p, gradients), expected, dropped = both(x)
    np.testing.assert_allclose(gradients, expected, atol=0.02 * np.abs(expected).max())
    np.testing.assert_allclose(gradients.sum(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(log_p, dropped, rtol=1e-5)  # equal weights are a dropped label
    read = classify_by_gradient(np.asarray(log_p)[None], np.asarray(gradients)[None])
    np.testing.assert_array_equal(read, np.argmax(expected, axis=1))


def test_draws_count_by_their_densities():
    log_p, gradients = np.array([[0.0], [-50.0]]), np.array([[[1.0, 0.0]], [[0.0, 9.0]]])
    assert classify_by_gradient(log_p, gradients).tolist() == [0]
    assert classify_by_gradient(np.zeros((2, 1)), gradients).tolist() == [1]
    with pytest.raises(ValueError, match="must not be NaN, got 1"):
        classify_by_gradient(np.array([[np.nan]]), gradients[:1])


@pytest.mark.slow
def test_weights_of_classes_in_place_of_labels():
    flow, x = random_flow(CLASSES), normal((2, 4, 4, 1))
    one_hot = jnp.eye(3)[jnp.array([2, 0])]
    weighed, labelled = jax.jit(lambda: (flow.log_prob(x, one_hot), flow.log_prob(x, jnp.array([2, 0]))))()
    np.testing.assert_allclose(weighed, labelled, rtol=1e-6)
    with pytest.raises(ValueError, match=r"weights of classes \[2, 3\] or None, got float32 of shape \(2, 4\)"):
        flow.log_prob(x, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"guidance needs cond to be labels \[B\], got shape \(2, 3\)"):
        flow.forward(x, one_hot, guidance=LinearGuidance(1.0))
