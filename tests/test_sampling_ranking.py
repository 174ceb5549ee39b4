"""Keeping the likeliest samples."""

import jax
import numpy as np
import pytest
from random_flows import CLASSES, VIDEO, normal, random_flow

from starflow_jax.evaluation.likelihood.frame_likelihood import token_log_probs
from starflow_jax.flows.parameters import split
from starflow_jax.sampling.ranking import likeliest, log_likelihoods
from starflow_jax.solvers import SlidingWindow, inverse


@pytest.fixture(scope="module")
def video():
    return random_flow(VIDEO), np.asarray(normal((5, 3, 4, 4, 2))), np.asarray(normal((5, 3, 6), 1))


def test_given_frames_do_not_count(video):
    flow, x, cond = video
    shares = np.asarray(jax.jit(token_log_probs)(flow, x, cond)).sum(axis=(2, 3))
    params = split(flow)[1]
    scores = log_likelihoods(params, VIDEO, x, cond, batch_size=2)
    np.testing.assert_allclose(scores, shares.sum(axis=1), rtol=1e-5)
    scores = log_likelihoods(params, VIDEO, x, cond, given=2)
    np.testing.assert_allclose(scores, shares[:, 2], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_video_drawn_in_windows_has_the_density_that_it_was_drawn_from(video):
    flow, _, cond = video
    noise, later, window = normal((2, 4, 4, 4, 2), 3), np.asarray(normal((2, 3, 6), 4)), SlidingWindow(2, 1)
    x = np.asarray(jax.jit(lambda z: inverse(flow, z, cond[:2], window=window, later_cond=later).x)(noise))
    scores = log_likelihoods(split(flow)[1], VIDEO, x, cond[:2], window=window, later_cond=later)
    shares = jax.jit(token_log_probs)
    expected = np.asarray(shares(flow, x[:, :2], cond[:2])).sum(axis=(1, 2, 3))
    for first in (1, 2):  # later windows count their last frame, given the one before
        expected = expected + np.asarray(shares(flow, x[:, first : first + 2], later))[:, 1].sum(axis=(1, 2))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)


def test_scores_of_pictures_of_a_class():
    flow = random_flow(CLASSES)
    x, labels = np.asarray(normal((3, 4, 4, 1))), np.array([0, 2, -1], np.int32)
    scores = log_likelihoods(split(flow)[1], CLASSES, x, labels)
    np.testing.assert_allclose(scores, jax.jit(flow.log_prob)(x, labels), rtol=1e-5)


def test_the_likeliest_of_every_run_come_first():
    scores = np.array([1.0, np.nan, 3.0, 2.0, -np.inf, 5.0, 5.0, np.nan])
    np.testing.assert_array_equal(likeliest(scores, 4, 2), [2, 3, 5, 6])
    np.testing.assert_array_equal(likeliest(scores, 4, 4)[:4], [2, 3, 0, 1])
    np.testing.assert_array_equal(likeliest(scores, 1, 1), range(8))


def test_requests_that_make_no_sense_are_refused(video):
    flow, x, cond = video
    params = split(flow)[1]
    for options, message in (({"given": 3}, "given must be below"), ({"batch_size": 0}, "batch_size")):
        with pytest.raises(ValueError, match=message):
            log_likelihoods(params, VIDEO, x, cond, **options)
    with pytest.raises(ValueError, match="at least one sample"):
        log_likelihoods(params, VIDEO, x[:0], cond[:0])
    for candidates, keep, message in ((4, 5, "keep must be at most candidates=4"), (3, 1, "multiple of candidates=3")):
        with pytest.raises(ValueError, match=message):
            likeliest(np.zeros(8), candidates, keep)
