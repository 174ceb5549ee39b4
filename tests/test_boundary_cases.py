"""Sizes, counts and weights at their limits, each with the right value: exact inverses, equal samples, one sentence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, normal, random_flow

from starflow_jax.core.config import SampleConfig
from starflow_jax.flows import Guidance
from starflow_jax.sampling.latent_shapes import RunAutoencoder
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.solvers import Jacobi, Sequential, inverse

TEXT, NULL = normal((2, 3, 6), 3), normal((1, 3, 6), 4)
SHAPES = {
    "one token": (dataclasses.replace(CLASSES, image_size=2), (2, 2, 2, 1)),
    "one patch wide": (dataclasses.replace(CLASSES, image_size=(8, 2)), (2, 8, 2, 1)),
    "one patch high": (dataclasses.replace(CLASSES, image_size=(2, 8)), (2, 2, 8, 1)),
    "one column of latents": (dataclasses.replace(IMAGE, image_size=(4, 1)), (2, 4, 1, 2)),
    "one frame": (VIDEO, (2, 1, 2, 2, 2)),
    "one token a frame": (VIDEO, (2, 3, 1, 1, 2)),
}


# These differ from others in this table by their configuration alone.
SLOW = ("one column of latents", "one token a frame")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SHAPES]
)
def test_the_inverse_is_exact_at_every_size(name):
    config, shape = SHAPES[name]
    flow, x = random_flow(config), normal(shape)
    condition = jnp.arange(2) if config.num_classes else TEXT
    out = flow.forward(x, condition)
    assert out.z.shape == shape and out.logdet.shape == (2,)
    for solver in (Sequential(), Jacobi(block=16, tolerance=1e-12)):
        back = inverse(flow, out.z, condition, solver=solver)
        np.testing.assert_allclose(back.x, x, atol=2e-5)
        assert bool(back.converged)


@pytest.mark.parametrize("name", ["one token", "one patch wide"])
def test_the_log_determinant_is_that_of_the_jacobian(name):
    config, shape = SHAPES[name]
    flow, x = random_flow(config), normal(shape)[:1]
    jacobian = jax.jacfwd(lambda v: flow.forward(v.reshape(x.shape), jnp.zeros(1, jnp.int32)).z.ravel())(x.ravel())
    expected = jnp.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(flow.forward(x, jnp.zeros(1, jnp.int32)).logdet[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # test_solvers.py has linear guidance of weight zero
def test_guidance_of_weight_zero_or_away_from_the_same_condition_is_none():
    flow, z = random_flow(IMAGE), normal((2, 3, 4, 2))
    plain = inverse(flow, z, TEXT).x
    np.testing.assert_allclose(inverse(flow, z, TEXT, guidance=Guidance(0.0, NULL)).x, plain, atol=1e-6)
    same = jnp.broadcast_to(TEXT[:1], TEXT.shape)
    # Away from the same condition there is nothing to amplify, whatever the weight.
    for weight in (1.0, 3.0):
        guided = inverse(flow, z, same, guidance=Guidance(weight, TEXT[:1])).x
        np.testing.assert_allclose(guided, inverse(flow, z, same).x, atol=1e-5)


@pytest.mark.parametrize("build", [lambda: SampleConfig(guidance=-1.0), lambda: SampleRequest(guidance=-1.0)])
def test_negative_guidance_is_refused(build):
    with pytest.raises(ValueError, match=r"guidance must be a finite number >= 0, got -1.0"):
        build()


@pytest.mark.parametrize(
    ("pixels", "latent", "decoded"), [(0, 0, 0), (1, 1, 1), (2, 1, 1), (4, 1, 1), (5, 2, 5), (8, 2, 5), (81, 21, 81)]
)
def test_frames_of_pixels_and_of_latents_at_a_stride_of_four(pixels, latent, decoded):
    """A count that is not of the form 4k + 1 is rounded down to one."""

    class Autoencoder:
        frame_stride = 4

    videos = RunAutoencoder(Autoencoder(), {})
    assert videos.latent_frames(pixels) == latent and videos.pixel_frames(latent) == decoded
