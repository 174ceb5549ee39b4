"""Random distortions of training images: invariants, effects, and no effect when disabled."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.data.sources.digits import digits
from starflow_jax.flows.parameters import abstract
from starflow_jax.training.step.train_step import init_state, train_step
from starflow_jax.training.step.warp import cubic_kernel, displacements, random_warp, resample

LEVELS = 17
warp = jax.jit(random_warp, static_argnums=2)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(digits("train").images[:256])


@pytest.mark.parametrize(("probability", "strength"), [(0.0, 0.5), (1.0, 0.0), (0.5, 0.0)])
def test_no_probability_or_no_strength_changes_nothing(images, probability, strength):
    warped = warp(jax.random.key(0), images, LEVELS, probability, strength)
    np.testing.assert_array_equal(warped, images)


def test_images_stay_integers_of_the_same_kind_and_range(images):
    warped = warp(jax.random.key(0), images, LEVELS, 1.0, 2.0)
    assert (warped.shape, warped.dtype) == (images.shape, images.dtype)
    assert int(warped.max()) <= LEVELS - 1
    as_float = warp(jax.random.key(0), images.astype(jnp.float32), LEVELS, 1.0, 2.0)
    np.testing.assert_array_equal(as_float, warped)  # nothing wrapped around or was cut by the cast


def test_mean_intensity_and_most_of_the_picture_are_kept(images):
    warped = np.asarray(warp(jax.random.key(0), images, LEVELS, 1.0, 0.5), float)
    original = np.asarray(images, float)
    assert warped.mean() == pytest.approx(original.mean(), rel=0.05)
    correlation = np.corrcoef(warped.ravel(), original.ravel())[0, 1]
    assert 0.8 < correlation < 0.98


def test_the_share_of_distorted_images_is_the_probability(images):
    warped = warp(jax.random.key(0), images, LEVELS, 0.3, 0.5)
    share = np.mean(np.any(np.asarray(warped != images), axis=(1, 2, 3)))
    assert share == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / len(images)) ** 0.5)


def test_the_key_decides_everything(images):
    once, again, other = (warp(jax.random.key(seed), images, LEVELS, 0.5, 0.5) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert np.any(once != other)


@pytest.mark.parametrize("shape", [(3, 5, 7, 2), (1, 1, 4, 1), (2, 16, 9, 3)])
def test_any_height_width_and_channels(shape):
    pictures = jax.random.randint(jax.random.key(0), shape, 0, 256).astype(jnp.uint8)
    warped = warp(jax.random.key(1), pictures, 256, 1.0, 0.5)
    assert (warped.shape, warped.dtype) == (shape, jnp.uint8)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (1, 0), (0, -2), (2, 3)])
def test_whole_pixels_are_read_exactly_and_zero_comes_in(down, right):
    picture = np.asarray(jax.random.normal(jax.random.key(0), (1, 6, 7, 2)))
    field = jnp.broadcast_to(jnp.array([down, right], jnp.float32), (1, 6, 7, 2))
    padded = np.pad(picture, ((0, 0), (3, 3), (3, 3), (0, 0)))
    expected = padded[:, 3 + down : 9 + down, 3 + right : 10 + right]
    np.testing.assert_allclose(resample(jnp.asarray(picture), field), expected, atol=1e-6)


def test_a_straight_ramp_is_interpolated_exactly():
    ramp = jnp.broadcast_to(jnp.arange(9.0)[:, None] - 2 * jnp.arange(8.0), (1, 9, 8))[..., None]
    field = jnp.broadcast_to(jnp.array([0.3, -0.4]), (1, 9, 8, 2))
    inside = np.s_[:, 2:-2, 2:-2]
    np.testing.assert_allclose(resample(ramp, field)[inside], ramp[inside] + 0.3 + 0.8, atol=1e-5)


def test_kernel_weights_sum_to_one():
    offset = jnp.linspace(-0.5, 0.5, 11)[:, None] - jnp.arange(-3, 4)
    np.testing.assert_allclose(cubic_kernel(offset).sum(axis=1), 1.0, atol=1e-6)


def test_control_points_move_by_the_strength_and_pixels_between_follow():
    field = np.asarray(displacements(jax.random.key(0), 4000, 5, 5, 0.7))
    assert field[:, ::2, ::2].std() == pytest.approx(0.7, rel=0.03)  # 5 pixels: points at 0, 2, 4
    np.testing.assert_allclose(field[:, 1], (field[:, 0] + field[:, 2]) / 2, atol=1e-6)
    np.testing.assert_allclose(field[:, :, 3], (field[:, :, 2] + field[:, :, 4]) / 2, atol=1e-6)


@pytest.mark.slow  # the warp itself is tested above
def test_training_reads_warped_images_only_where_asked(images):
    flow = FlowConfig(
        family="tarflow", channels=1, image_size=8, patch_size=4, width=16, num_blocks=1, layers_per_block=1,
        head_dim=16, num_classes=10,
    )  # fmt: skip
    train = TrainConfig(steps=4, batch_size=256, lr=1e-2)
    plain = ExperimentConfig(name="test", flow=flow, data=DataConfig(label_drop=0.3), train=train)
    state = init_state(plain)
    batch = {"image": images, "label": jnp.asarray(digits("train").labels[:256])}
    definition = abstract(flow)[0]

    def loss(**data):
        config = dataclasses.replace(plain, data=DataConfig(label_drop=0.3, **data))
        return float(jax.jit(functools.partial(train_step, config, definition, LEVELS))(state, batch)[1]["loss"])

    without = loss()
    assert loss(warp=1.0) != without
    # With strength 0 only the other random numbers could differ, and they must not.
    assert loss(warp=1.0, warp_strength=0.0) == without


@pytest.mark.parametrize("values", [{"warp": -0.1}, {"warp": 1.5}, {"warp_strength": -1.0}, {"warp": "often"}])
def test_bad_fields_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        DataConfig(**values)
