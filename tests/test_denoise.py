"""Removing noise: exact where the answer is known, chunk by chunk as in one piece, one noise level per sample."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, VIDEO, normal, random_flow

from starflow_jax.core.config import DenoiserConfig
from starflow_jax.flows import denoise_in_chunks, learned_denoise, objective, score, score_denoise
from starflow_jax.flows.denoise import NOISE_SCALE, noise_level_weight

TEXT = normal((2, 3, 6), 3)
CLIP = normal((2, 4, 2, 2, 2))


@pytest.fixture(scope="module")
def clip_flow():
    return random_flow(VIDEO)


@pytest.mark.slow  # the parity tests hold the score to recordings
def test_the_score_of_an_identity_flow_is_minus_x():
    from starflow_jax.flows.parameters import initialise, merge

    flow, x = merge(*initialise(CLASSES, jax.random.key(0))), normal((2, 4, 4, 1))
    np.testing.assert_allclose(score(flow, x), -x, atol=1e-6)
    np.testing.assert_allclose(score_denoise(flow, x, None, 0.5), 0.75 * x, atol=1e-6)


@pytest.mark.parametrize("method", [score_denoise, learned_denoise])
def test_one_level_a_sample_is_each_sample_at_its_level(clip_flow, method):
    run = jax.jit(lambda x, cond, level: method(clip_flow, x, cond, level))
    together = run(CLIP, TEXT, jnp.array([0.2, 0.7]))
    for i, level in enumerate((0.2, 0.7)):
        np.testing.assert_allclose(together[i], run(CLIP, TEXT, jnp.array([level, level]))[i], atol=1e-5)


def test_halfway_is_half_the_step(clip_flow):
    run = jax.jit(learned_denoise)
    full = run(clip_flow, CLIP, TEXT, 0.5) - CLIP
    half = run(clip_flow, CLIP, TEXT, jnp.array([0.5, 0.5]), jnp.array([0.25, 0.25])) - CLIP
    np.testing.assert_allclose(half, full / 2, atol=1e-6)


def test_weights_apply_to_each_sample(clip_flow):
    levels = jnp.array([0.3, 0.6])
    run = jax.jit(lambda x, y, w: objective(clip_flow.forward(x, y), weights=w))
    together = run(CLIP, TEXT, noise_level_weight(levels))
    alone = [run(CLIP[i : i + 1], TEXT[i : i + 1], None).loss for i in range(2)]
    np.testing.assert_allclose(together.loss, (1.0 * alone[0] + 2.0 * alone[1]) / 2, rtol=1e-5)
    assert NOISE_SCALE == 0.3


@pytest.mark.parametrize("look_ahead, window", [(None, None), (1, None), (1, 1), (2, 1)])
def test_look_ahead_and_window_bound_what_a_frame_sees(look_ahead, window):
    config = dataclasses.replace(VIDEO, denoiser=DenoiserConfig(1, False, look_ahead, window))
    denoiser = random_flow(config).denoiser  # unconditional: it reads no text
    run = jax.jit(lambda x: denoiser(x))
    video = normal((1, 5, 2, 2, 2))
    for key_frame in range(5):
        moved = np.abs(np.asarray(run(video.at[:, key_frame].add(1.0)) - run(video))).max(axis=(0, 2, 3, 4)) > 0
        last = [4 if look_ahead is None else q + look_ahead - 1 for q in range(5)]
        first = [0 if window is None else last[q] - window for q in range(5)]
        assert moved.tolist() == [first[q] <= key_frame <= last[q] for q in range(5)]


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("overlap", [0, 1, 2, None])
def test_every_length_is_covered_once_and_overlaps_are_noisy(frames, overlap):
    """With a denoiser that adds one, every frame gains exactly one: none is skipped, none is denoised twice."""
    video = jnp.arange(float(frames)).reshape(1, frames, 1, 1, 1)
    out = denoise_in_chunks(lambda piece, start: piece + 1.0, video, chunk=3, overlap=overlap)
    np.testing.assert_array_equal(out, video + 1.0)


def test_the_original_feeds_its_own_output_back():
    video = jnp.zeros((1, 5, 1, 1, 1))

    def running_sum(piece, start):
        return jnp.cumsum(piece, axis=1) + 1.0

    plain = denoise_in_chunks(running_sum, video, chunk=3, overlap=1)
    fed = denoise_in_chunks(running_sum, video, chunk=3, overlap=1, feed_denoised=True)
    np.testing.assert_array_equal(plain[0, :, 0, 0, 0], [1, 1, 1, 1, 1])
    np.testing.assert_array_equal(fed[0, :, 0, 0, 0], [1, 1, 1, 2, 2])


def test_an_overlap_as_long_as_the_chunk_never_ends_so_it_is_refused():
    with pytest.raises(ValueError, match="overlap must be below chunk=2, got 2"):
        denoise_in_chunks(lambda piece, start: piece, jnp.zeros((1, 4, 1, 1, 1)), chunk=2, overlap=2)


def test_a_flow_without_denoiser_says_so():
    with pytest.raises(ValueError, match="no learned denoiser; use score_denoise"):
        learned_denoise(random_flow(CLASSES), jnp.zeros((1, 4, 4, 1)), None, 0.1)


def test_a_conditional_denoiser_needs_text(clip_flow):
    with pytest.raises(ValueError, match="cond is None, but this denoiser reads text"):
        clip_flow.denoiser(CLIP)
