"""Captions to videos: noise per frame, windows, given frames, denoising, and one program per kind of call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import VIDEO, random_flow

from starflow_jax.core.config import DataConfig, ExperimentConfig, SampleConfig, TextConfig, TrainConfig
from starflow_jax.flows import learned_denoise, score_denoise
from starflow_jax.flows.parameters import split
from starflow_jax.media import to_uint8
from starflow_jax.sampling.videos import video_sampling
from starflow_jax.sampling.videos.video_plan import default_window, plan_videos, text_states
from starflow_jax.sampling.videos.video_sampling import frame_noise, generate
from starflow_jax.solvers import Jacobi, SlidingWindow

FRAMES, SIGMA = 4, 0.3
CONFIG = ExperimentConfig(
    name="tiny",
    flow=dataclasses.replace(VIDEO, channels=1, text_length=5, patch_size=2),
    text=TextConfig(("(v2v)", "a", "one", "two", "left", "right")),
    data=DataConfig(source="moving_digits", frames=FRAMES, noise="gaussian", noise_std=SIGMA),
    train=TrainConfig(steps=1, batch_size=1, lr=1e-3),
    sample=SampleConfig(denoise="none"),
)
KEY = jax.random.key(5)
CAPTIONS = ["a one left", "", "two right"]
WINDOW = SlidingWindow(FRAMES, 3)


@pytest.fixture(scope="module")
def flow():
    return random_flow(CONFIG.flow)


@pytest.fixture(scope="module")
def params(flow):
    return split(flow)[1]


@pytest.fixture(scope="module")
def short(params):
    return generate(params, CONFIG, KEY, CAPTIONS)


@pytest.fixture(scope="module")
def long(params):
    return generate(params, CONFIG, KEY, CAPTIONS, frames=7, denoise="learned")


def noise(places, times):
    return frame_noise(KEY, jnp.asarray(places), jnp.asarray(times), (4, 4, 1))


def test_forward_gives_the_noise_back(flow, short):
    z = jax.jit(flow.forward)(short.x, text_states(CONFIG, CAPTIONS)).z
    np.testing.assert_allclose(z, noise(range(3), range(FRAMES)), atol=2e-4)
    assert short.videos.shape == (3, FRAMES, 4, 4, 1) and short.videos.dtype == np.uint8
    np.testing.assert_array_equal(short.videos, to_uint8(short.x))
    assert short.report.images == 3 and short.report.converged and short.report.non_finite == 0


def test_the_noise_of_a_frame_is_its_own():
    many = noise(range(5), range(9))
    np.testing.assert_array_equal(many[2:4, 3:5], noise([2, 3], [3, 4]))
    assert len(np.unique(many.round(6))) > 0.99 * many.size
    assert abs(float(many.mean())) < 0.1 and abs(float(many.std()) - 1) < 0.1


def test_a_longer_video_begins_like_the_shorter_one(short, long):
    assert long.x.shape == (3, 7, 4, 4, 1)
    np.testing.assert_allclose(long.x[:, :FRAMES], short.x, atol=1e-5)


def test_a_long_video_goes_on_with_its_own_noise(flow, long):
    """The frames after the first window are those of a video of one window that begins with its context."""
    kept = WINDOW.num_context
    end = long.x[:, FRAMES - kept : FRAMES + 1]
    z = jax.jit(flow.forward)(end, text_states(CONFIG, CAPTIONS)).z
    np.testing.assert_allclose(z[:, -1], noise(range(3), [FRAMES])[:, 0], atol=2e-4)


def test_long_videos_are_denoised_in_chunks_of_a_window(flow, long):
    cond = text_states(CONFIG, CAPTIONS)
    whole = jax.jit(lambda x: learned_denoise(flow, x, cond, SIGMA))
    np.testing.assert_allclose(long.denoised[:, :FRAMES], whole(long.x[:, :FRAMES]), atol=1e-5)
    # Of a later chunk the frames after the overlap count: the denoiser's window of 2.
    np.testing.assert_allclose(long.denoised[:, 4:6], whole(long.x[:, 2:6])[:, 2:], atol=1e-5)
    assert np.abs(long.denoised - long.x).max() > 1e-3


def test_videos_depend_on_their_place_and_not_on_their_batch(params, short):
    some = generate(params, CONFIG, KEY, CAPTIONS[1:], places=[1, 2], batch_size=1)
    assert (some.report.batches, some.report.batch_size) == (2, 1)
    np.testing.assert_allclose(some.x, short.x[1:], atol=1e-5)


def test_given_frames_come_back_clean_and_are_given_noisy(flow, params):
    clean = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
    drawn = generate(flow, CONFIG, KEY, CAPTIONS, prefix=clean)
    np.testing.assert_array_equal(drawn.videos[:, :2], np.broadcast_to(clean, (3, *clean.shape)))
    added = drawn.x[:, :2] - (clean / 127.5 - 1)
    assert abs(added.std() / SIGMA - 1) < 0.25 and len(np.unique(added.round(5))) > 90
    assert drawn.given_frames == 2
    z = jax.jit(flow.forward)(drawn.x, text_states(CONFIG, CAPTIONS)).z
    np.testing.assert_allclose(z[:, 2:], noise(range(3), range(2, FRAMES)), atol=2e-4)
    # The same frames as numbers, once for each video.
    again = generate(params, CONFIG, KEY, CAPTIONS, prefix=np.stack([clean] * 3) / np.float32(127.5) - 1)
    np.testing.assert_allclose(again.x, drawn.x, atol=1e-5)
    np.testing.assert_array_equal(again.videos[:, :2], drawn.videos[:, :2])


@pytest.mark.slow
def test_score_denoising_is_that_of_the_whole_video(flow, params, short):
    drawn = generate(params, CONFIG, KEY, CAPTIONS, denoise="score")
    np.testing.assert_allclose(drawn.x, short.x, atol=1e-5)
    cond = text_states(CONFIG, CAPTIONS)
    expected = jax.jit(lambda x: score_denoise(flow, x, cond, SIGMA))(short.x)
    np.testing.assert_allclose(drawn.denoised, expected, atol=1e-4)


def test_guidance_zero_is_none_and_the_empty_caption_cannot_be_guided(params, short):
    guided = generate(params, CONFIG, KEY, CAPTIONS, guidance=3.0)
    np.testing.assert_allclose(guided.x[1], short.x[1], atol=1e-4)
    assert np.abs(guided.x - short.x)[[0, 2]].max() > 1e-2
    barely = generate(params, CONFIG, KEY, CAPTIONS, guidance=1e-6)
    np.testing.assert_allclose(barely.x, short.x, atol=1e-4)


@pytest.mark.slow
def test_another_size_and_another_solver(params):
    exact = generate(params, CONFIG, KEY, CAPTIONS[:1], frames=2, size=(4, 8))
    assert exact.videos.shape == (1, 2, 4, 8, 1)
    solver = Jacobi(tolerance=0.0, max_iterations=16)
    drawn = generate(params, CONFIG, KEY, CAPTIONS[:1], frames=2, size=(4, 8), solver=solver)
    np.testing.assert_allclose(drawn.x, exact.x, atol=1e-4)


def test_a_second_video_of_the_same_kind_compiles_nothing(params, monkeypatch):
    traced, counted = [], []
    inverse = video_sampling.inverse
    monkeypatch.setattr(video_sampling, "inverse", lambda *a, **o: traced.append(1) or inverse(*a, **o))
    clean = np.zeros((1, 4, 4, 1), np.uint8)
    options = {"frames": 6, "batch_size": 2, "window": WINDOW, "progress": counted.append}
    first = generate(params, CONFIG, KEY, CAPTIONS, guidance=1.0, prefix=clean, **options).report
    assert traced == [1] and counted == [2 * 5, 1 * 5]
    again = generate(
        params, CONFIG, jax.random.key(8), CAPTIONS[::-1], guidance=2.0, temperature=0.5, prefix=clean + 9, **options
    ).report
    assert traced == [1] and again.compile_seconds < 0.1 * first.compile_seconds


def test_the_default_window_is_the_released_one():
    assert default_window(21) == SlidingWindow(21, 16)
    assert [default_window(n).num_context for n in (2, 4, 8)] == [1, 3, 6]


@pytest.mark.parametrize(
    ("captions", "options", "named"),
    [
        ([], {}, "captions"),
        ("a one", {}, "captions"),
        (["a three"], {}, "unknown word 'three'"),
        (["a a a a a a"], {}, "at most 5 words"),
        (["a"], {"frames": 0}, "frames must be an integer >= 1"),
        (["a"], {"size": (4, 5)}, "size must be multiples of flow.patch_size=2, got 4 x 5"),
        (["a"], {"guidance": -1.0}, "guidance"),
        (["a"], {"temperature": float("nan")}, "temperature"),
        (["a"], {"attention_temperature": 0.0}, "attention_temperature"),
        (["a"], {"denoise": "median"}, "denoise"),
        (["a"], {"batch_size": 0}, "batch_size"),
        (["a"], {"places": [1, 2]}, "places must be 1 integers"),
        (["a"], {"places": [-1]}, "places must be 0 to"),
        (["a"], {"places": [[2**32, 0]]}, "places must be 0 to 4294967295, got 4294967296"),
        (["a"], {"prefix": np.zeros((4, 4, 4, 1), np.uint8)}, "1 <= P < 4"),
        (["a"], {"prefix": np.zeros((5, 4, 4, 1), np.uint8), "frames": 9}, "1 <= P < 4"),
        (["a"], {"prefix": np.zeros((1, 8, 4, 1), np.uint8)}, r"prefix must be .* got shape \[1, 1, 8, 4, 1\]"),
        (["a"], {"prefix": np.zeros((2, 1, 4, 4, 1), np.uint8)}, r"prefix must be \[1 or 1, P"),
        (["a"], {"prefix": np.zeros((1, 4, 4, 1), np.int64)}, "prefix must be uint8 or floating"),
        (["a"], {"prefix": np.full((1, 4, 4, 1), np.nan)}, "prefix must be finite"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_any_work(captions, options, named):
    with pytest.raises(ValueError, match=named):
        generate({}, CONFIG, KEY, captions, **options)


def test_models_that_cannot_do_it_are_refused():
    still = dataclasses.replace(CONFIG, data=DataConfig(noise="gaussian", noise_std=SIGMA))
    with pytest.raises(ValueError, match=r"model trained on clips, got data\.source 'digits'"):
        plan_videos(still, ["a"])
    blind = dataclasses.replace(CONFIG, flow=dataclasses.replace(CONFIG.flow, denoiser=None))
    with pytest.raises(ValueError, match="without a learned denoiser"):
        plan_videos(blind, ["a"], denoise="learned")
    backwards = dataclasses.replace(CONFIG, flow=dataclasses.replace(CONFIG.flow, temporal_causal=False))
    with pytest.raises(ValueError, match="frames must be at most 4 for this model, got 9"):
        plan_videos(backwards, ["a"], frames=9)
    with pytest.raises(ValueError, match=r"prefix needs a model with flow\.temporal_causal"):
        plan_videos(backwards, ["a"], prefix=np.zeros((1, 4, 4, 1), np.uint8))
    uniform = dataclasses.replace(
        CONFIG, flow=blind.flow, data=dataclasses.replace(CONFIG.data, noise="uniform", noise_std=0.0)
    )
    with pytest.raises(ValueError, match="prefix needs a model trained with Gaussian noise"):
        plan_videos(uniform, ["a"], prefix=np.zeros((1, 4, 4, 1), np.uint8))
