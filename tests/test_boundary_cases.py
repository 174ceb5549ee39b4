"""Sizes, counts and weights at their limits, each with the right value: exact inverses, equal samples, one sentence.

docs/specification.md has the whole table of cases. Other files test the rest of it: resumption is exact from any step
(`test_training_loop.py`, `test_killed_run.py`, `test_curriculum.py`; batches in `test_loader.py`), a checkpoint gives
the running mean unless told otherwise (`test_checkpoint.py`), samples of a seed depend neither on the batch size
(`test_sampling.py`, `test_sampling_video.py`, `test_quality_command.py`) nor on the devices
(`test_ready_parameters.py`, `test_sweep_processes.py`; `test_mesh.py` for training).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, IMAGE, VIDEO, forward, normal, random_flow

from starflow_jax.core.config import SampleConfig
from starflow_jax.flows import Guidance
from starflow_jax.flows.affine import Affine
from starflow_jax.flows.guidance import guide_by_ratio, guide_linearly
from starflow_jax.sampling.latent_shapes import RunAutoencoder
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.solvers import Jacobi, Sequential, inverse
from starflow_jax.training.step.optimizer import update_ema

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
SLOW = ("one patch wide", "one column of latents", "one frame", "one token a frame")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SHAPES]
)
def test_the_inverse_is_exact_at_every_size(name):
    config, shape = SHAPES[name]
    flow, x = random_flow(config), normal(shape)
    condition = jnp.arange(2) if config.num_classes else TEXT
    out = forward(flow, x, condition)
    assert out.z.shape == shape and out.logdet.shape == (2,)
    for solver in (Sequential(), Jacobi(block=16, tolerance=1e-12)):
        back = jax.jit(lambda flow, z, solver=solver: inverse(flow, z, condition, solver=solver))(flow, out.z)
        np.testing.assert_allclose(back.x, x, atol=2e-5)
        assert bool(back.converged)


@pytest.mark.parametrize("name", ["one token", pytest.param("one patch wide", marks=pytest.mark.slow)])
def test_the_log_determinant_is_that_of_the_jacobian(name):
    config, shape = SHAPES[name]
    flow, x = random_flow(config), normal(shape)[:1]
    label = np.zeros(1, np.int32)
    jacobian = jax.jit(jax.jacfwd(lambda v: flow.forward(v.reshape(x.shape), label).z.ravel()))(x.ravel())
    expected = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(forward(flow, x, label).logdet[0], expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize(
    ("kind", "weight", "mean", "scale"),
    [
        *((kind, 0.0, 2.0, 1.0) for kind in ("ratio", "a", "b", "ab")),
        ("ratio", 1.0, (2 * 2 - 0.25 * 1) / 1.75, 1.75**-0.5),  # d = 1 + w - w s with s = (1 / 2)^2
        ("a", 1.0, 2.0, 0.5),
        ("b", 1.0, 3.0, 1.0),
        ("ab", 1.0, 3.0, 0.5),
    ],
)
def test_guidance_of_weight_zero_and_one(kind, weight, mean, scale):
    """Of mean 2 and scale 1 away from mean 1 and scale 2."""
    given = [Affine(jnp.full((1, 1, 1), m), jnp.full((1, 1, 1), s)) for m, s in ((2.0, 1.0), (1.0, 2.0))]
    guided = guide_by_ratio(*given, weight) if kind == "ratio" else guide_linearly(*given, jnp.float32(weight), kind)
    np.testing.assert_allclose([guided.mean.item(), guided.scale.item()], [mean, scale], rtol=1e-6)


@pytest.mark.parametrize(
    ("decay", "step", "kept"),
    [(0.0, 0, 0.0), (0.0, 10**6, 0.0), (0.9, 0, 2 / 11), (0.1, 0, 0.1), (0.9999, 8, 10 / 19), (0.9999, 10**7, 0.9999)],
)
def test_the_share_of_the_running_mean_that_an_update_keeps(decay, step, kept):
    mean = update_ema({"w": jnp.ones(1)}, {"w": jnp.zeros(1)}, decay=decay, step=step)
    np.testing.assert_allclose(mean["w"], kept, rtol=1e-5)


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
