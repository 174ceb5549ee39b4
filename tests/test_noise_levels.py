"""Noise-conditioned flows: one flow for every noise level, and how levels are drawn and weighted in training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

from starflow_jax.core.config import DataConfig, ExperimentConfig, TrainConfig
from starflow_jax.flows import learned_denoise
from starflow_jax.flows.denoise import NOISE_SCALE
from starflow_jax.flows.guidance import Guidance
from starflow_jax.flows.parameters import abstract, split
from starflow_jax.porting.tensor_names import to_torch
from starflow_jax.solvers import Jacobi, Sequential, inverse
from starflow_jax.training.step.noise_levels import Levels, draw_levels
from starflow_jax.training.step.train_step import accumulated, loss_and_gradients

SPAN = (0.01, 0.5)
TEXT = normal((2, 3, 6), 3)


def conditioned(config):
    return dataclasses.replace(config, noise_levels=SPAN)


@pytest.mark.slow  # test_solvers_invert_the_flow_at_every_level is quick for images
def test_given_frames_stay_and_the_others_are_those_of_their_noise():
    flow, x = random_flow(conditioned(VIDEO)), normal((2, 3, 4, 4, 2))
    z = jax.jit(lambda x: flow.forward(x, TEXT).z)(x)
    found = jax.jit(lambda z, given: inverse(flow, z, TEXT, prefix=given).x)(z, x[:, :1])
    np.testing.assert_allclose(found, x, atol=2e-3)


@pytest.mark.parametrize(
    ("config", "shape", "guidance"),
    [
        pytest.param(IMAGE, (2, 4, 4, 2), None, marks=pytest.mark.slow),
        pytest.param(VIDEO, (2, 3, 4, 4, 2), None, marks=pytest.mark.slow),
        pytest.param(VIDEO, (2, 3, 4, 4, 2), Guidance(1.5, jnp.zeros_like(TEXT)), marks=pytest.mark.slow),
        pytest.param(IMAGE, (2, 4, 4, 2), Guidance(1.5, jnp.zeros_like(TEXT)), marks=pytest.mark.slow),
    ],
)
def test_levels_of_examples_are_those_of_each_alone_and_the_default_is_the_highest(config, shape, guidance):
    flow, x = random_flow(conditioned(config)), normal(shape)
    run = jax.jit(lambda level: flow.forward(x, TEXT, guidance=guidance, noise_level=level).z)
    together = run(jnp.array([0.02, 0.3]))
    for i, level in enumerate((0.02, 0.3)):
        np.testing.assert_allclose(together[i], run(jnp.array([level] * 2))[i], atol=1e-6)
    assert np.abs(together[0] - run(jnp.array([0.3, 0.3]))[0]).max() > 1e-3
    default = jax.jit(lambda: flow.forward(x, TEXT, guidance=guidance).z)()
    np.testing.assert_allclose(default, run(jnp.array([0.5, 0.5])), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "cond", "shape", "solver"),
    [
        (CLASSES, jnp.array([1, 2]), (2, 4, 4, 1), Sequential()),
        pytest.param(CLASSES, None, (2, 4, 4, 1), Jacobi(block=2, tolerance=1e-12), marks=pytest.mark.slow),
        pytest.param(VIDEO, TEXT, (2, 3, 4, 4, 2), Sequential(), marks=pytest.mark.slow),
    ],
)
def test_solvers_invert_the_flow_at_every_level(config, cond, shape, solver):
    flow, x = random_flow(conditioned(config)), normal(shape)

    @jax.jit
    def there_and_back(level, other):
        z = flow.forward(x, cond, noise_level=level).z
        return [inverse(flow, z, cond, solver=solver, noise_level=one).x for one in (level, other)]

    same, other = there_and_back(0.02, 0.3)
    np.testing.assert_allclose(same, x, atol=1e-4)
    assert np.abs(other - x).max() > 1e-2


def test_bad_levels_are_refused():
    flow, x = random_flow(conditioned(CLASSES)), normal((2, 4, 4, 1))
    with pytest.raises(ValueError, match="noise_level must be above 0, got 0"):
        flow.log_prob(x, noise_level=0.0)
    with pytest.raises(ValueError, match=r"must be None for a flow without flow\.noise_levels"):
        random_flow(CLASSES).log_prob(x, noise_level=0.1)
    with pytest.raises(ValueError, match=r"noise_levels must be None for files of the PyTorch originals"):
        to_torch(split(flow)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_levels": (0.5, 0.1)}, "noise_levels must be .t0, t1. with 0 < t0 < t1"),
        ({"noise_levels": (0.0, 0.1)}, "noise_levels must be .t0, t1. with 0 < t0 < t1"),
        ({"noise_levels": SPAN, "scale": "unit"}, "noise_levels needs scale"),
        ({"noise_levels": SPAN, "width": 15, "head_dim": 15}, "an even width, got 15"),
    ],
)
def test_fields_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CLASSES, **change)


def test_the_noise_of_the_data_must_be_that_of_the_flow():
    flow, train = conditioned(CLASSES), TrainConfig(steps=1, batch_size=2, lr=1e-3)
    make = functools.partial(ExperimentConfig, name="test", flow=flow)
    with pytest.raises(ValueError, match=r"data.noise_std the highest of flow.noise_levels \(0.01, 0.5\), got"):
        make(data=DataConfig(noise="gaussian", noise_std=0.3), train=train)
    data = DataConfig(noise="gaussian", noise_std=0.5)
    with pytest.raises(ValueError, match="noise_weight must be False"):
        make(data=data, train=dataclasses.replace(train, noise_weight=True))
    assert make(data=data, train=train).flow.lowest_level == 0.01
    with pytest.raises(ValueError, match=r"level_weight need flow.noise_levels, got None for 'uniform' and 'ones'"):
        make(flow=CLASSES, data=data, train=dataclasses.replace(train, level_weight="ones"))


def test_flows_without_levels_keep_their_hashes_and_parameters():
    assert "noise_levels" not in CLASSES.identity() and conditioned(CLASSES).identity()["noise_levels"] == SPAN
    assert "level_embed" not in abstract(CLASSES)[1]["blocks"][next(iter(abstract(CLASSES)[1]["blocks"]))]


@pytest.mark.parametrize(
    ("distribution", "inverse_cdf"),
    [
        ("uniform", lambda u: 0.01 + 0.49 * u),
        ("linear", lambda u: np.sqrt(1e-4 + (0.25 - 1e-4) * u)),
        pytest.param("edm", None, marks=pytest.mark.slow),  # imports scipy
    ],
)
def test_levels_follow_their_distribution(distribution, inverse_cdf):
    level = np.asarray(draw_levels(jax.random.key(0), 4000, SPAN, distribution, "ones").level)
    assert level.min() >= 0.01 and level.max() <= 0.5
    if inverse_cdf is None:
        from scipy.stats import truncnorm

        low, high = (np.log(edge) + 1.2 for edge in SPAN)

        def inverse_cdf(u):
            return np.exp(truncnorm.ppf(u, low, high) - 1.2)

    quantiles = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(np.quantile(level, quantiles), inverse_cdf(quantiles), atol=0.02)


def test_weights_of_levels():
    weights = {}
    for name in ("ones", "level", "square", "normalised"):
        drawn = draw_levels(jax.random.key(0), 8, SPAN, "uniform", name)
        weights[name], level = np.asarray(drawn.weight), np.asarray(drawn.level)
    np.testing.assert_array_equal(weights["ones"], 1.0)
    np.testing.assert_array_equal(weights["level"], level)
    np.testing.assert_allclose(weights["square"], level**2, rtol=1e-6)
    np.testing.assert_allclose(weights["normalised"], level / level.mean(), rtol=1e-6)


@pytest.mark.slow
def test_the_denoiser_learns_tweedies_step_at_every_level_and_parts_of_a_batch_add_up():
    config = dataclasses.replace(conditioned(VIDEO), num_blocks=1, deep_width=None)
    definition, _ = abstract(config)
    flow = random_flow(config)
    params, x = split(flow)[1], normal((2, 2, 4, 4, 2))
    levels = Levels(jnp.array([0.02, 0.4]), jnp.array([0.02, 0.4]) ** 2)
    function = functools.partial(loss_and_gradients, definition)
    losses, grads = jax.jit(lambda p: accumulated(function, p, x, TEXT, parts=1, levels=levels))(params)
    parted = jax.jit(lambda p: accumulated(function, p, x, TEXT, parts=2, levels=levels))(params)
    np.testing.assert_allclose(losses.loss, parted[0].loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads["blocks"]), jax.tree.leaves(parted[1]["blocks"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)

    @jax.jit
    def expected():
        nats = jax.grad(lambda x: -jnp.sum(flow.log_prob(x, TEXT, noise_level=levels.level)))(x)
        step = levels.level.reshape(-1, 1, 1, 1, 1) ** 2 * nats
        moved = learned_denoise(flow, x, TEXT, levels.level)
        # The error of the denoiser is that of its step, in units of NOISE_SCALE.
        return jnp.mean(((x - moved) - step) ** 2) / NOISE_SCALE**2

    np.testing.assert_allclose(losses.loss_denoiser, expected(), rtol=1e-3)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["denoiser"]["level_embed"]))
