"""One training step: gradients, the denoiser's target, guards, noise, and several updates in one program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.core.config import DataConfig, DenoiserConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.flows.likelihood import objective
from starflow_jax.flows.parameters import abstract, merge
from starflow_jax.training.step.inputs import condition, drop_labels, noisy_pixels
from starflow_jax.training.step.train_step import (
    init_state,
    loss_and_gradients,
    train_step,
    train_steps,
    update_prior_variance,
)

TARFLOW = FlowConfig(
    family="tarflow",
    channels=1,
    image_size=8,
    patch_size=4,
    width=16,
    num_blocks=2,
    layers_per_block=1,
    head_dim=16,
    num_classes=10,
    scale="unit",
)
STARFLOW = FlowConfig(
    channels=1,
    image_size=8,
    patch_size=4,
    width=24,
    num_blocks=1,
    layers_per_block=1,
    head_dim=24,
    sos=True,
    rope=True,
    text_dim=10,
    text_length=1,
    denoiser=DenoiserConfig(layers=1),
)
LEVELS = 17


def experiment(flow=TARFLOW, **train):
    gaussian = flow.denoiser is not None
    data = DataConfig(noise="gaussian", noise_std=0.3) if gaussian else DataConfig(label_drop=0.3)
    options = {"steps": 8, "batch_size": 4, "lr": 1e-2, "steps_per_call": 3} | train
    return ExperimentConfig(name="test", flow=flow, data=data, train=TrainConfig(**options), seed=1)


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, LEVELS, (count, 4, 8, 8, 1)).astype(np.uint8),
        "label": rng.integers(0, 10, (count, 4)).astype(np.int32),
    }


def random_state(config):
    """A state with random parameters instead of special initial values such as zero projections."""
    shapes = jax.eval_shape(lambda: init_state(config))
    rng = np.random.default_rng(7)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), shapes.params)
    if "prior_variance" in params:
        params["prior_variance"] = jnp.ones(params["prior_variance"].shape)
    ema = None if shapes.ema is None else jax.tree.map(jnp.copy, params)
    return zeros.replace(params=params, ema=ema, key=jnp.array([1, 2], jnp.uint32))


update = functools.partial(train_steps, experiment(TARFLOW, ema=0.9), LEVELS)
loss_and_gradients_of_starflow = jax.jit(functools.partial(loss_and_gradients, abstract(STARFLOW)[0], latent_norm=1e-2))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def starflow_case():
    definition, _ = abstract(STARFLOW)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    cond = condition(jnp.array([1, 2, -1]), STARFLOW)
    return definition, random_state(experiment(STARFLOW)).params, x, cond


def test_denoiser_learns_noise_std_times_the_gradient_of_the_summed_weighted_objective(starflow_case):
    definition, params, x, cond = starflow_case
    weights, noise_std = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.3, 0.6, 0.15])
    losses, grads, x_grad = loss_and_gradients_of_starflow(params, x, cond, weights=weights, noise_std=noise_std)
    flow = merge(definition, params)

    def summed(x):  # over samples and dimensions
        output = flow.forward(x, cond)
        latent = 1e-2 * sum(jnp.mean(u**2) for u in output.tokens[:-1])
        return weights @ (0.5 * jnp.sum(output.z**2, axis=(1, 2, 3)) - output.logdet) + x.size * latent

    target = noise_std.reshape(-1, 1, 1, 1) * jax.jit(jax.grad(summed))(x)
    np.testing.assert_allclose(noise_std.reshape(-1, 1, 1, 1) * x.size * x_grad, target, rtol=1e-4, atol=1e-4)
    prediction = jax.jit(lambda: flow.denoiser(x, cond))()
    expected = jnp.mean((prediction - target) ** 2)
    np.testing.assert_allclose(losses.loss_denoiser, expected, rtol=1e-4)
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(grads["denoiser"]))


def test_the_denoiser_does_not_move_the_flow(starflow_case):
    definition, params, x, cond = starflow_case
    weights, noise_std = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.3, 0.6, 0.15])
    losses, grads, _ = loss_and_gradients_of_starflow(params, x, cond, weights=weights, noise_std=noise_std)

    def flow_alone(params):
        output = merge(definition, params).forward(x, cond)
        return objective(output, weights=weights, latent_norm=1e-2).loss

    loss, expected = jax.jit(jax.value_and_grad(flow_alone))(params)
    np.testing.assert_allclose(losses.loss, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads["blocks"]), jax.tree.leaves(expected["blocks"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_any_number_of_updates_runs_the_same_program():
    config = experiment(ema=0.9)
    data = batches(3)
    together, metrics = update(random_state(config), data, 3)
    programs = train_steps._cache_size()
    apart = random_state(config)
    for index in range(3):
        one = {name: np.stack([array[index]] * 3) for name, array in data.items()}
        apart, single = update(apart, one, 1)
        assert np.array_equal(metrics["loss"][index], single["loss"][0])
        assert np.isnan(single["loss"][1:]).all()
    assert same(together, apart) and int(together.step) == 3
    assert train_steps._cache_size() == programs


def test_training_lowers_the_loss_and_moves_the_prior_variance():
    state = random_state(experiment(ema=0.9))
    data = batches(1)
    data = {name: np.repeat(array, 3, axis=0) for name, array in data.items()}
    losses = []
    for _ in range(5):
        state, metrics = update(state, data, 3)
        losses.append(float(metrics["loss"].mean()))
    assert losses[-1] < losses[0]
    assert not np.allclose(state.params["prior_variance"], 1.0)
    np.testing.assert_array_equal(state.ema["prior_variance"], state.params["prior_variance"])


def test_prior_variance_is_a_running_mean_of_rate_one_tenth():
    np.testing.assert_allclose(update_prior_variance(jnp.ones((2, 3)), jnp.full((2, 3), 2.0)), 1.1, rtol=1e-6)


def test_a_nan_loss_leaves_everything_but_the_step():
    config = experiment(ema=0.9)
    state = random_state(config)
    broken = state.params | {"blocks": jax.tree.map(lambda a: a.at[0].set(jnp.nan), state.params["blocks"])}
    state = state.replace(params=broken)
    # the program donates the buffers of the state, so compare with a copy
    before = jax.tree.map(np.asarray, jax.tree.map(jnp.copy, state))
    after, metrics = update(state, batches(3), 1)
    assert np.isnan(metrics["loss"][0]) and metrics["skipped"][0] == 1
    for name in ("params", "opt_state", "ema"):
        for a, b in zip(jax.tree.leaves(getattr(after, name)), jax.tree.leaves(getattr(before, name)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert int(after.step) == 1


def test_denoiser_metrics_are_reported():
    state = jax.eval_shape(lambda: init_state(experiment(STARFLOW)))
    assert set(state.opt_state) == {"flow", "denoiser"} and state.ema is None
    after, metrics = jax.eval_shape(functools.partial(train_steps, experiment(STARFLOW), LEVELS), state, batches(3), 1)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {"loss_denoiser", "denoiser_grad_norm", "denoiser_skipped"} < set(metrics)


def test_dropout_is_drawn_from_the_step_and_only_volume_preserving_flows_learn_a_prior():
    flow = dataclasses.replace(TARFLOW, dropout=0.5, scale="exp")
    config = experiment(flow)
    definition, _ = abstract(flow)

    @jax.jit  # without the gradients, on which neither depends
    def loss_and_prior(state, batch):
        state, metrics = train_step(config, definition, LEVELS, state, batch)
        return metrics["loss"], state.params["prior_variance"]

    batch = {name: array[0] for name, array in batches(1).items()}
    state = random_state(config)
    (first, prior), (again, _) = loss_and_prior(state, batch), loss_and_prior(state, batch)
    later, _ = loss_and_prior(state.replace(step=state.step + 1), batch)
    assert first == again != later
    np.testing.assert_array_equal(prior, state.params["prior_variance"])


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_noise_is_what_the_configuration_says(noise):
    image = jnp.tile(jnp.array([0, 8, 16], jnp.uint8), (4000, 1))
    config = DataConfig(noise=noise, noise_std=0.1 if noise == "gaussian" else 0.0)
    x = noisy_pixels(jax.random.key(0), image, LEVELS, config)
    assert x.dtype == jnp.float32
    if noise == "uniform":
        width = 2 / LEVELS
        np.testing.assert_array_equal(jnp.floor((x + 1) / width).clip(0, 16), image)
        np.testing.assert_allclose(x.std(axis=0), width / np.sqrt(12), rtol=0.05)
    else:
        np.testing.assert_allclose(x.mean(axis=0), [-1, 0, 1], atol=0.01)
        np.testing.assert_allclose(x.std(axis=0), 0.1, rtol=0.05)


def test_labels_are_dropped_at_the_rate_and_conditions_fit_the_flow():
    label = jnp.arange(10_000, dtype=jnp.int32) % 10
    dropped = drop_labels(jax.random.key(0), label, 0.1)
    share = float(jnp.mean(dropped == -1))
    assert 0.08 < share < 0.12
    np.testing.assert_array_equal(dropped[dropped >= 0], label[dropped >= 0])
    assert condition(label, dataclasses.replace(TARFLOW, num_classes=0)) is None
    assert condition(label, TARFLOW) is label
    states = condition(jnp.array([3, -1]), STARFLOW)
    assert states.shape == (2, 1, 10) and states[0, 0, 3] == 1 and not states[1].any()
