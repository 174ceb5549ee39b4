"""PSNR, SSIM and the comparison of denoisers, where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, VIDEO, random_flow

from starflow_jax.evaluation.video.denoiser_ablation import DenoiserQuality, denoiser_ablation, denoisers_table
from starflow_jax.evaluation.video.psnr_ssim import psnr, ssim
from starflow_jax.flows import learned_denoise
from starflow_jax.flows.parameters import initialise, split

CLIPS = np.random.default_rng(0).uniform(-1, 1, (3, 2, 8, 8, 1))
KEY = jax.random.key(2)


def test_psnr_by_hand():
    """An error of 0.2 everywhere, of a range of 2, is 20 dB; ten times less is 20 dB more."""
    np.testing.assert_allclose(psnr(CLIPS + 0.2, CLIPS), 20.0)
    np.testing.assert_allclose(psnr(CLIPS - 0.02, CLIPS), 40.0)
    assert np.isinf(psnr(CLIPS, CLIPS)).all()


def test_ssim_is_one_for_the_clip_itself_and_falls_with_noise():
    np.testing.assert_allclose(ssim(CLIPS, CLIPS), 1.0)
    noise = np.random.default_rng(1).normal(size=CLIPS.shape)
    little, much = ssim(CLIPS + 0.1 * noise, CLIPS), ssim(CLIPS + noise, CLIPS)
    assert (little < 1).all() and (little > much).all()


def test_ssim_of_a_window_that_covers_the_frame_follows_its_formula():
    """On frames of 7 x 7 there is one window: means, variances and covariance of all its pixels."""
    mine, theirs = CLIPS[:1, :1, :7, :7], CLIPS[1:2, :1, :7, :7]
    a, b = mine.ravel(), theirs.ravel()
    small, smaller = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    covariance = np.cov(a, b)
    expected = (2 * a.mean() * b.mean() + small) * (2 * covariance[0, 1] + smaller)
    expected /= (a.mean() ** 2 + b.mean() ** 2 + small) * (covariance[0, 0] + covariance[1, 1] + smaller)
    np.testing.assert_allclose(ssim(mine, theirs), expected)


@pytest.mark.parametrize("side", [3, 4, 6, 9])
def test_ssim_of_small_frames(side):
    frames = np.random.default_rng(0).uniform(-1, 1, (2, side, side, 2))
    np.testing.assert_allclose(ssim(frames, frames), 1.0)


def test_bad_clips_are_refused():
    with pytest.raises(ValueError, match=r"got \[3, 2, 8, 8, 1\] and \[2, 2, 8, 8, 1\]"):
        psnr(CLIPS, CLIPS[:2])
    with pytest.raises(ValueError, match="must be finite, got 48 values"):
        ssim(np.where(CLIPS > 9, 0, np.where(np.arange(8)[:, None] == 1, np.nan, CLIPS)), CLIPS)
    with pytest.raises(ValueError, match="at least 3 x 3"):
        ssim(CLIPS[..., :2, :, :], CLIPS[..., :2, :, :])


def test_the_score_of_an_identity_flow_removes_what_a_normal_prior_would():
    """A new flow is a standard normal, so its denoiser is x (1 - sigma^2): means and errors follow by hand."""
    clean = np.random.default_rng(3).normal(size=(5, 4, 4, 1)) * 0.2
    _, params = initialise(CLASSES, jax.random.key(0))
    rows = denoiser_ablation(params, CLASSES, clean, None, KEY, noise_std=0.5, batch_size=2)
    keys = jax.vmap(lambda place: jax.random.fold_in(KEY, place))(jnp.arange(5))
    noisy = clean + 0.5 * np.asarray(jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(keys))
    expected = psnr(np.clip(noisy, -1, 1), clean), psnr(np.clip(0.75 * noisy, -1, 1), clean)
    assert [row.method for row in rows] == ["none", "score"]
    for row, values in zip(rows, expected, strict=True):
        assert row.psnr == pytest.approx(values.mean(), rel=1e-5) and row.clips == 5
        assert row.psnr_error == pytest.approx(values.std(ddof=1) / np.sqrt(5), rel=1e-4)
    assert rows[1].psnr > rows[0].psnr


@pytest.mark.slow  # the parity tests hold the denoiser to recordings
def test_the_learned_denoiser_is_the_flows_own_and_the_table_lines_up():
    flow = random_flow(VIDEO)
    clean, text = np.zeros((3, 2, 4, 4, 2)), np.ones((3, 3, 6), np.float32)
    rows = denoiser_ablation(split(flow)[1], VIDEO, clean, text, KEY, noise_std=0.3, batch_size=2)
    noise = jax.vmap(lambda place: jax.random.normal(jax.random.fold_in(KEY, place), clean.shape[1:]))(jnp.arange(3))
    found = jax.jit(lambda x: learned_denoise(flow, x, text, 0.3))(0.3 * noise)
    expected = DenoiserQuality.from_clips("learned", np.asarray(found), clean)
    assert rows[2].method == "learned" and rows[2].psnr == pytest.approx(expected.psnr, rel=1e-4)
    assert rows[2].ssim == pytest.approx(expected.ssim, rel=1e-3)
    lines = denoisers_table([row.to_dict() for row in rows]).splitlines()
    assert len(lines) == 5 and len(set(map(len, lines))) == 1 and "flow-score matching" in lines[4]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise_std": 0.0}, "noise_std must be above 0, got 0.0"),
        ({"noise_std": 0.3, "batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        denoiser_ablation({}, CLASSES, CLIPS, None, KEY, **options)
