"""Gradients with respect to the noise of a flow, against derivatives of its inverse."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, VIDEO, normal, random_flow

import starflow_jax as sf
from starflow_jax.core.config import PixelMapConfig
from starflow_jax.editing.flow_prior import FlowPrior
from starflow_jax.flows.noise_gradient import noise_gradient

LABELS = jnp.asarray([0, 2], jnp.int32)
SCALED = dataclasses.replace(CLASSES, pixel_map=PixelMapConfig())


@pytest.mark.parametrize(
    ("config", "size", "frames"),
    [
        (CLASSES, (4, 4, 1), None),
        pytest.param(SCALED, (4, 4, 1), None, marks=pytest.mark.slow),
        pytest.param(VIDEO, (3, 2, 2, 2), 3, marks=pytest.mark.slow),
        pytest.param(dataclasses.replace(VIDEO, shallow_local=False), (3, 2, 2, 2), 3, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_derivative_through_the_inverse(config, size, frames):
    """(J^-T g) . t = g . (dx/dz t), of which forward differentiation of the solver gives the right side."""
    config = dataclasses.replace(config, image_size=size[-2])
    flow = random_flow(config)
    if flow.prior_variance is not None:
        variance = flow.prior_variance[...]
        flow.prior_variance[...] = jnp.linspace(0.5, 2.0, variance.size).reshape(variance.shape)
    model = sf.distribution(flow, frames=frames)
    cond = normal((2, 3, 6), 3) if config.text_dim else LABELS
    z, gradient, tangent = (normal((2, *size), seed) for seed in range(3))
    x, moved = jax.jvp(lambda z: model.transform_and_log_det(z, cond)[0], (z,), (tangent,))
    found = jax.jit(lambda x: noise_gradient(flow, x, gradient, cond))(x)
    expected = jnp.sum(gradient * moved, axis=range(1, z.ndim))
    np.testing.assert_allclose(jnp.sum(found * tangent, axis=range(1, z.ndim)), expected, rtol=2e-4, atol=2e-4)


def test_the_prior_of_edits_approximates_it_under_the_conditions_of_its_rows():
    flow = random_flow(CLASSES)
    model = sf.distribution(flow)
    x, gradient = normal((2, 4, 4, 1), 5), normal((2, 4, 4, 1), 6)
    swapped = FlowPrior(model, LABELS).of_rows(jnp.asarray([1, 0]))
    found = swapped.noise_gradient(x, gradient)
    compiled = jax.jit(noise_gradient)
    exact, of_others = (compiled(flow, x, gradient, labels) for labels in (LABELS[::-1], LABELS))
    error, other = (jnp.linalg.norm(found - one) / jnp.linalg.norm(exact) for one in (exact, of_others))
    assert error < 0.05 < other, (error, other)
