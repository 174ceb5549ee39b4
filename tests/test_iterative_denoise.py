"""Iterative denoising: exact where the score is known, in samples of images and of videos, streamed or not."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, VIDEO, random_flow

from starflow_jax.core.config import DataConfig, ExperimentConfig, SampleConfig, TextConfig, TrainConfig
from starflow_jax.flows import iterative_denoise, learned_denoise, score_denoise
from starflow_jax.sampling import sample
from starflow_jax.sampling.denoising import recorded_denoising
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.sampling.streaming.stream import stream
from starflow_jax.sampling.videos import video_sampling as videos
from starflow_jax.solvers import SlidingWindow

SPAN, KEY = (0.01, 0.5), jax.random.key(3)
MEAN, STD = 0.3, 0.2  # of Gaussian data, whose score at every noise level is known
TRAIN = TrainConfig(steps=1, batch_size=2, lr=1e-3)


def posterior_mean(x, level):
    return MEAN + STD**2 / (STD**2 + level**2) * (x - MEAN)


def on_gaussian(x, levels, step):
    def noise(index):
        return jax.random.normal(jax.random.fold_in(KEY, index), x.shape)

    run = jax.jit(lambda x, count: iterative_denoise(posterior_mean, x, SPAN, count, step=step, noise=noise))
    return [np.asarray(run(x, jnp.int32(count))) for count in levels]  # one program for every number of levels


def test_steps_of_the_sde_sample_the_posterior_of_gaussian_data():
    """The mean is exact for every number of levels: its factors telescope. The variance is that of the recursion."""
    x = jnp.full((8000, 1), 1.1)
    one, few, many = on_gaussian(x, (1, 4, 400), "sde")
    np.testing.assert_allclose(one, posterior_mean(x, SPAN[1]), rtol=1e-6)
    for found in (few, many):
        assert found.mean() == pytest.approx(float(posterior_mean(1.1, SPAN[1])), abs=8e-3)
    levels = np.append(np.linspace(*SPAN[::-1], 4), 0.0)
    variance = 0.0
    for now, then in itertools.pairwise(levels):
        variance = ((STD**2 + then**2) / (STD**2 + now**2)) ** 2 * variance + then**2 * (1 - (then / now) ** 2)
    assert few.std() == pytest.approx(variance**0.5, rel=0.03)
    exact = (STD**2 * SPAN[1] ** 2 / (STD**2 + SPAN[1] ** 2)) ** 0.5
    assert many.std() == pytest.approx(exact, rel=0.03)


def test_steps_of_the_ode_follow_its_solution_for_gaussian_data():
    x = jnp.array([[-0.4], [1.1]])
    (few, many) = on_gaussian(x, (5, 2000), "ode")
    levels = np.append(np.linspace(*SPAN[::-1], 5), 0.0)
    factors = [(STD**2 + now * then) / (STD**2 + now**2) for now, then in itertools.pairwise(levels)]
    np.testing.assert_allclose(few, MEAN + np.prod(factors) * (x - MEAN), rtol=1e-5)
    np.testing.assert_allclose(many, MEAN + STD / (STD**2 + SPAN[1] ** 2) ** 0.5 * (x - MEAN), atol=1e-3)


def test_estimates_are_clipped_and_the_sde_needs_noise():
    bounds = iterative_denoise(lambda x, t: 9 * x, jnp.ones((2, 1)), SPAN, 3, clip=True)
    np.testing.assert_array_equal(bounds, 1.0)
    with pytest.raises(ValueError, match="noise must be given for step 'sde'"):
        iterative_denoise(posterior_mean, jnp.ones((2, 1)), SPAN, 3, step="sde")


IMAGES = ExperimentConfig(
    name="test",
    flow=dataclasses.replace(CLASSES, noise_levels=SPAN, dtype="bfloat16"),
    data=DataConfig(noise="gaussian", noise_std=0.5),
    train=TRAIN,
)


@pytest.mark.slow
def test_samples_of_images_are_denoised_level_by_level_in_float32():
    flow, labels = random_flow(IMAGES.flow), np.array([0, 2, 1])
    options = {"denoise": "iterative", "denoise_levels": 3}
    drawn = sample(flow, IMAGES, KEY, labels, **options)
    exact = random_flow(dataclasses.replace(IMAGES.flow, dtype="float32"))
    x = jnp.asarray(drawn.noisy)

    @jax.jit
    def step(x, now, then):
        return score_denoise(exact, x, jnp.asarray(labels), now) * (1 - then / now) + then / now * x

    for now, then in ((0.5, 0.255), (0.255, 0.01), (0.01, 0.0)):
        x = step(x, now, then)
    np.testing.assert_allclose(drawn.x, x, atol=1e-4)
    assert drawn.report.non_finite == 0


@pytest.mark.slow
def test_noise_of_the_sde_belongs_to_its_image():
    flow, options = random_flow(IMAGES.flow), {"denoise": "iterative", "denoise_levels": 4, "denoise_step": "sde"}
    all_together = sample(flow, IMAGES, KEY, np.array([0, 2, 1]), **options)
    by_two = sample(flow, IMAGES, KEY, np.array([0, 2, 1]), batch_size=2, **options)
    np.testing.assert_allclose(all_together.x, by_two.x, atol=1e-3)
    assert np.abs(all_together.x - sample(flow, IMAGES, KEY, np.array([0, 2, 1]), denoise="iterative").x).max() > 1e-2
    clipped = sample(flow, IMAGES, KEY, np.array([0, 2, 1]), denoise_clip=True, **options)
    assert np.abs(clipped.x).max() <= 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoise": "iterative-learned"}, "'none', 'score' or 'iterative' for a model without a learned denoiser"),
        ({"denoise": "score", "denoise_levels": 3}, "denoise_levels needs denoise 'iterative' or"),
        ({"denoise_step": "sde"}, "denoise_step needs denoise 'iterative' or"),
        ({"denoise": "iterative", "denoise_levels": 0}, "denoise_levels must be an integer >= 1"),
        ({"denoise": "iterative", "denoise_step": "euler"}, "denoise_step must be one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample({}, IMAGES, KEY, np.array([0]), **options)


def test_models_without_levels_and_bad_requests_are_refused():
    plain = dataclasses.replace(IMAGES, flow=CLASSES)
    with pytest.raises(ValueError, match=r"denoise 'iterative' needs a model with flow.noise_levels"):
        sample({}, plain, KEY, np.array([0]), denoise="iterative")
    with pytest.raises(ValueError, match=r"sample.denoise 'iterative' needs flow.noise_levels"):
        dataclasses.replace(plain, sample=SampleConfig(denoise="iterative"))
    for field, value in (("denoise_levels", 0), ("denoise_step", "x"), ("denoise_clip", 1), ("denoise", "x")):
        with pytest.raises(ValueError, match=f"{field} must be"):
            SampleRequest(**{field: value})
    assert recorded_denoising(plain, dict.fromkeys(("denoise", "denoise_levels", "denoise_step", "denoise_clip"))) == {
        "denoise": "none"
    }


WORDS = ("a", "one", "two", "left", "up", "moving")
CLIPS = ExperimentConfig(
    name="test",
    flow=dataclasses.replace(VIDEO, noise_levels=SPAN),
    data=DataConfig(source="moving_digits", frames=3, noise="gaussian", noise_std=0.5),
    train=TRAIN,
    text=TextConfig(WORDS),
)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["iterative", "iterative-learned"])
def test_videos_are_denoised_in_chunks_and_streamed_ones_are_the_same(method):
    flow = random_flow(CLIPS.flow)
    options = {"frames": 5, "window": SlidingWindow(3, 1), "denoise": method, "denoise_levels": 2}
    options["denoise_step"] = "sde"
    whole = videos.generate(flow, CLIPS, KEY, ["a one left", "two"], **options)
    frames = [frame.denoised for frame in stream(flow, CLIPS, KEY, ["a one left", "two"], **options)]
    np.testing.assert_allclose(np.stack(frames, axis=1), whole.denoised, atol=2e-3)
    remove = score_denoise if method == "iterative" else learned_denoise
    text = jnp.asarray(whole.text)

    def noise(level):
        return videos.frame_noise(
            jax.random.fold_in(jax.random.fold_in(KEY, videos._DENOISE_STREAM), level),
            np.arange(2, dtype=np.int32),
            jnp.arange(3),
            (4, 4, 2),
        )

    first = jax.jit(
        lambda x: iterative_denoise(lambda x, t: remove(flow, x, text, t), x, SPAN, 2, step="sde", noise=noise)
    )(whole.x[:, :3])
    np.testing.assert_allclose(whole.denoised[:, :3], first, atol=1e-3)
