"""A flow as a distribution: its samples have the density that they come with, in the shapes of FlowJAX."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

import starflow_jax as sf
from starflow_jax.core.config import FlowConfig
from starflow_jax.core.config.pixel_map_config import PixelMapConfig
from starflow_jax.solvers import OnePass

PAIR = FlowConfig(
    family="tarflow", channels=1, image_size=(2, 1), width=8, num_blocks=2, layers_per_block=1, head_dim=8
)
KEY = jax.random.key(3)
TIGHT = {"tolerance": 1e-12, "max_iterations": 40}


@pytest.fixture(scope="module")
def classes():
    """A flow of 4 tokens with three classes, and its samples of each class with their densities."""
    made = sf.distribution(random_flow(CLASSES), solver=sf.Jacobi.whole(**TIGHT))
    return made, *made.sample_and_log_prob(KEY, (4,), jnp.arange(3))


@pytest.fixture(scope="module")
def pair():
    """A flow of two numbers whose prior has a variance other than 1, as a volume-preserving one has after training."""
    flow = random_flow(PAIR)
    flow.prior_variance[...] = jnp.full_like(flow.prior_variance[...], 2.0)
    return sf.distribution(flow, shape=(2,))


def test_density_integrates_to_one_and_gives_the_moments_of_the_samples(pair):
    axis = np.linspace(-15, 15, 161, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    log_p = np.asarray(pair.log_prob(points))
    cells = np.exp(log_p) * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(cells.sum(), 1.0, atol=1e-3)
    x, log_q = (np.asarray(array) for array in pair.sample_and_log_prob(KEY, (10_000,)))
    np.testing.assert_allclose(x.mean(axis=0), np.einsum("ij,ijk->k", cells, points), atol=0.05)
    np.testing.assert_allclose(log_q.mean(), np.sum(cells * log_p), atol=0.05)


def test_density_of_a_sample_is_read_off_its_solver(classes):
    made, x, log_q = classes
    assert x.shape == (4, 3, *made.shape) and log_q.shape == (4, 3)
    np.testing.assert_allclose(log_q, made.log_prob(x, jnp.arange(3)), rtol=1e-5)


def test_maps_invert_each_other_and_their_log_determinants(classes):
    made, x, _ = classes
    z, log_det = made.inverse_and_log_det(x, jnp.arange(3))
    back, other = made.transform_and_log_det(z, jnp.arange(3))
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_allclose(other, -log_det, rtol=1e-5)


def test_log_determinant_is_that_of_differences(classes):
    made, x, _ = classes
    base, step = np.asarray(x[0, 2]).reshape(-1), 1e-2
    labels, columns = np.full((4, 3), 2, np.int32), []
    for first in range(0, base.size, 6):  # as many at a time as there are samples, so that no program is compiled
        moved = np.tile(base, (12, 1))
        index = np.minimum(np.arange(first, first + 6), base.size - 1)
        moved[np.arange(6), index] += step
        moved[np.arange(6, 12), index] -= step
        z, _ = made.inverse_and_log_det(moved.reshape(4, 3, *made.shape), labels)
        up, down = np.asarray(z).reshape(2, 6, -1)
        columns += list((up - down)[: base.size - first] / (2 * step))
    expected = np.linalg.slogdet(np.stack(columns))[1]
    np.testing.assert_allclose(made.inverse_and_log_det(x, labels)[1][0, 2], expected, atol=2e-3)


def test_it_is_a_pytree_that_transformations_take(classes):
    made, x, log_q = classes
    labels = jnp.arange(3)

    @jax.jit
    @jax.value_and_grad
    def total(made):
        return jnp.sum(jax.vmap(made.log_prob)(x[0], labels))

    value, gradient = total(made)
    np.testing.assert_allclose(value, log_q[0].sum(), rtol=1e-5)
    assert jax.tree.structure(gradient) == jax.tree.structure(made)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient.params))


def test_conditions_broadcast_against_data(classes):
    made, x, log_q = classes
    every = np.asarray(made.log_prob(x[:, :1], jnp.arange(3)))
    assert every.shape == (4, 3) and len(np.unique(every)) == 12
    np.testing.assert_allclose(made.log_prob(x, [0, 1, 2]), log_q, rtol=1e-5)  # of numbers that are no arrays
    np.testing.assert_allclose(every[:, 0], log_q[:, 0], rtol=1e-5)
    assert made.cond_shape == ()


def test_arguments_that_do_not_fit(pair):
    made = pair
    for call, message in (
        (lambda: made.log_prob(jnp.zeros(3)), r"x must be \[..., 2\], got shape \(3,\)"),
        (lambda: made.log_prob(jnp.zeros(2, jnp.int32)), "x must be floating point"),
        (lambda: made.sample(KEY, (2,), 7), r"condition must be None for this flow, got shape \(\)"),
        (lambda: sf.distribution(made.flow, shape=(3,)), r"shape must have the 2 numbers of \[2, 1, 1\]"),
        (lambda: sf.distribution(made.flow, frames=2), "frames must be None for a flow of still images"),
        (lambda: sf.distribution(made.flow, noise_level=0.1), "noise_level must be None"),
        (lambda: sf.distribution(made.flow, solver="jacobi"), "solver must be a solver object for a flow"),
        (lambda: sf.distribution(made.flow, solver=OnePass()), "got OnePass, whose estimates"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("solver", [sf.Sequential(), sf.SlidingJacobi(window=3, tolerance=1e-6), sf.Secant(**TIGHT)])
@pytest.mark.parametrize("kind", ["text", "video", "pixels", "levels"])
def test_every_solver_gives_the_density(kind, solver):
    config, frames, cond = {
        "text": (IMAGE, None, normal((2, 3, 6))),
        "video": (VIDEO, 3, normal((2, 3, 6))),
        "pixels": (dataclasses.replace(CLASSES, pixel_map=PixelMapConfig("logit", levels=256)), None, jnp.arange(2)),
        "levels": (dataclasses.replace(CLASSES, noise_levels=(0.1, 0.5)), None, jnp.arange(2)),
    }[kind]
    made = sf.distribution(random_flow(config), solver=solver, frames=frames)
    x, log_q = made.sample_and_log_prob(KEY, (2,), cond)
    np.testing.assert_allclose(log_q, made.log_prob(x, cond), rtol=1e-5)
    again = jax.jit(lambda made, key: made.sample(key, (2,), cond))(made, KEY)
    np.testing.assert_allclose(again, x, atol=1e-5)
    if kind == "pixels":
        np.testing.assert_allclose(made.log_prob(x, jnp.eye(3)[:2]), log_q, rtol=1e-5)


@pytest.mark.slow
def test_densities_over_a_mesh_are_those_of_one_device():
    script = Path(__file__).parent / "distribution_on_eight_devices.py"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8 and max(found["errors"].values()) < 1e-5, found
