"""Calibration, the test of typicality, and likelihood ratios, each against its published definition."""

import math

import jax
import numpy as np
import pytest
from random_flows import random_flow
from sweep_runs import params_of

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.applications.calibration import Reliability
from starflow_jax.evaluation.applications.code_length import code_lengths
from starflow_jax.evaluation.applications.memorisation import RatioMembership
from starflow_jax.evaluation.applications.out_of_distribution import TrainingStatistics, ood_scores
from starflow_jax.evaluation.applications.ratio_maps import difference, token_map
from starflow_jax.evaluation.applications.roc import auroc, true_positive_rate_at
from starflow_jax.evaluation.applications.typicality import typicality_tests
from starflow_jax.evaluation.likelihood.image_likelihood import log_probs

RNG = np.random.default_rng(0)


def test_calibration_errors_of_a_worked_example():
    # Guo et al., arXiv 1706.04599: bins ((m - 1) / M, m / M], so that 0.5 is in the first of two.
    found = Reliability.from_predictions(np.array([0.3, 0.5, 0.8, 0.9]), np.array([1, 0, 1, 1], bool), bins=2)
    assert found.images.tolist() == [2, 2]
    assert np.allclose(found.confidence, [0.4, 0.85]) and np.allclose(found.accuracy, [0.5, 1.0])
    assert math.isclose(found.expected_error, 0.5 * 0.1 + 0.5 * 0.15)
    assert math.isclose(found.maximum_error, 0.15)
    assert np.allclose(found.spread, [math.sqrt(0.3 * 0.7 + 0.25) / 2, math.sqrt(0.8 * 0.2 + 0.9 * 0.1) / 2])
    # Empty bins count nothing and are no rows.
    sure = Reliability.from_predictions(np.array([1.0, 1.0]), np.array([True, False]))
    assert (sure.expected_error, sure.maximum_error) == (0.5, 0.5)
    assert [(row["above"], row["to"], row["images"]) for row in sure.to_dict()["bins"]] == [(0.9, 1.0, 2)]
    with pytest.raises(ValueError, match=r"probabilities must be from 0 to 1, got 0.5 to 1.5"):
        Reliability.from_predictions(np.array([0.5, 1.5]), np.array([True, False]))


def test_calibrated_predictions_stay_within_their_spread():
    p = RNG.uniform(size=20_000)
    calibrated = Reliability.from_predictions(p, RNG.uniform(size=p.shape) < p)
    assert (np.abs(calibrated.accuracy - calibrated.confidence) < 4 * calibrated.spread).all()
    assert calibrated.expected_error < 0.015
    # All probabilities too high by 0.1: the error is that.
    assert math.isclose(
        Reliability.from_predictions(np.minimum(p + 0.1, 1), RNG.uniform(size=p.shape) < p).expected_error,
        np.mean(np.minimum(p + 0.1, 1) - p),
        abs_tol=0.015,
    )


def test_the_mode_of_a_gaussian_is_likely_and_not_typical():
    # Nalisnick et al., arXiv 1906.02994: in many dimensions the likeliest point is not in the typical set.
    dims = 200

    def bits(x):
        return ((x**2).sum(axis=1) + dims * math.log(2 * math.pi)) / (2 * math.log(2))

    entropy = dims * math.log2(2 * math.pi * math.e) / 2
    held_out = bits(RNG.normal(size=(4000, dims)))
    mode, wide = bits(np.zeros((10, dims))), bits(RNG.normal(0, 1.05, (4000, dims)))
    assert auroc(mode, held_out).area == 0  # the likelihood ranks the mode as the least out of distribution
    tests = {test.size: test for test in typicality_tests(entropy, held_out, {"mode": mode, "wide": wide})}
    assert all(test.atypical["mode"] == 1 for test in tests.values())
    assert all(abs(test.atypical["held out"] - 0.01) < 0.015 for test in tests.values())
    # A batch of 25 tells a standard deviation of 1.05, which one image does not.
    assert tests[1].atypical["wide"] < 0.25 and tests[25].atypical["wide"] > 0.95
    # The threshold is the quantile 0.99 of |mean of M - H|, here of a normal variable of variance D / (2 M) nats.
    for size, test in tests.items():
        expected = 2.576 * math.sqrt(dims / 2 / size) / math.log(2)
        assert math.isclose(test.threshold, expected, rel_tol=0.12)


def test_the_test_of_typicality_is_two_sided_and_strict():
    # Every held-out image is 3 bits above the entropy, so that is the threshold, and only what is farther is atypical.
    others = {"at": np.full(4, 13.0), "below": np.full(4, 7.0), "likelier": np.full(4, 6.9), "lost": np.full(4, np.nan)}
    (test,) = typicality_tests(10.0, np.full(6, 13.0), others, sizes=(5,), batches=50)
    assert test.threshold == 3.0
    assert test.atypical == {"held out": 0, "at": 0, "below": 0, "likelier": 1, "lost": 1}
    with pytest.raises(ValueError, match=r"held_out must be \[n\], n at least 2, got \[1\]"):
        typicality_tests(10.0, np.zeros(1), {})


def test_scores_are_the_published_differences():
    # Serra et al., arXiv 1909.11480: S(x) = -log2 p(x) - L(x), with L(x) the length of a lossless code.
    images = RNG.integers(0, 4, (5, 3, 3, 1)).astype(np.uint8)
    source = ArraySource("some", images, np.zeros(5, np.int32), 4, 1)
    bits, background = RNG.uniform(10, 20, 5), RNG.uniform(10, 20, 5)
    known = TrainingStatistics.from_training(source, bits)
    scores = ood_scores(known, source, bits, background)
    assert np.allclose(scores["complexity ratio"], bits - code_lengths(images, 4))
    # Nalisnick et al., arXiv 1906.02994, for batches of one image; Ren et al., arXiv 1906.02845: the (negative) ratio.
    assert np.allclose(scores["typicality"], np.abs(bits - bits.mean()))
    assert np.allclose(scores["reference ratio"], -(background - bits))
    broken = (np.where(np.arange(5) < 2, np.nan, bits), np.where(np.arange(5) > 3, np.nan, background))
    lost = ood_scores(known, source, *broken)
    assert np.isposinf(lost["reference ratio"][:2]).all() and np.isneginf(lost["reference ratio"][4])
    assert "reference ratio" not in ood_scores(known, source, bits)


def test_the_ratio_of_two_gaussians_is_the_best_test_between_them():
    # x ~ N(mu, 1) against N(0, 1): the ratio is monotone in x, so its AUROC is Phi(mu / sqrt 2), and at a rate of
    # false positives r it finds Phi(mu - Phi^-1(1 - r)) of the positives (Neyman and Pearson).
    mu, n = 1.5, 20_000
    of_one, of_other = RNG.normal(mu, 1, n), RNG.normal(0, 1, n)
    ratios = [mu * x - mu**2 / 2 for x in (of_one, of_other)]
    found = auroc(*ratios)

    def phi(x):
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    assert abs(found.area - phi(mu / math.sqrt(2))) < 4 * found.error
    assert abs(true_positive_rate_at(*ratios, 0.01) - phi(mu - 2.3263)) < 0.02
    assert true_positive_rate_at(np.array([2.0, 1.0]), np.array([1.0, 0.0]), 0.0) == 0.5
    assert true_positive_rate_at(np.array([2.0, 1.0]), np.array([1.0, 0.0]), 0.5) == 1.0


def test_a_reference_cancels_the_difficulty_of_images():
    # Watson et al., arXiv 2111.08440: the difficulty of an image varies far more than what membership changes.
    difficulty, other = RNG.normal(2, 1, 300), RNG.normal(2, 1, 300)
    found = RatioMembership.from_bits(difficulty - 0.05, other, difficulty, other)
    assert found.area.area == 1 and found.found == 1
    assert found.found_by_likelihood < 0.1 and abs(auroc(-(difficulty - 0.05), -other).area - 0.5) < 0.1
    assert math.isclose(found.train, 0.05) and found.held_out == 0 and found.not_finite == 0
    lost = RatioMembership.from_bits(np.array([1.0, np.nan]), np.array([1.0, 1.0]), np.ones(2), np.array([1.0, np.inf]))
    # The first model's overflow ranks lowest, the reference's highest: of four pairs one ties and three are wrong.
    assert lost.not_finite == 2 and lost.area.area == 0.125
    with pytest.raises(ValueError, match=r"bits of both models must be \[n\], got \[2\] and \[3\]"):
        RatioMembership.from_bits(np.ones(2), np.ones(2), np.ones(3), np.ones(2))


FLOW = FlowConfig(
    family="tarflow",
    channels=1,
    image_size=4,
    patch_size=1,
    width=16,
    num_blocks=1,
    layers_per_block=1,
    head_dim=8,
    num_classes=3,
)
IMAGES = ArraySource("some", RNG.integers(0, 17, (3, 4, 4, 1)).astype(np.uint8), np.zeros(3, np.int32), 17, 3)


@pytest.fixture(scope="module")
def maps():
    """Parameters of a flow of one block, and its maps of the images 2 and 0 with the labels 1 and 2."""
    params = params_of(random_flow(FLOW))

    def mapped(source, labels):
        return token_map(params, FLOW, source, jax.random.key(5), np.array([2, 0]), np.array(labels), draws=2)

    return params, mapped


def test_maps_sum_to_the_ratio_of_the_likelihoods(maps):
    params, mapped = maps
    every = log_probs(params, FLOW, IMAGES, jax.random.key(5), draws=2, labels=np.arange(3)).mean(axis=0)
    ratio = difference(mapped(IMAGES, [1, 2]), mapped(IMAGES, [0, 0]))
    wanted = np.array([every[2, 1] - every[2, 0], every[0, 2] - every[0, 0]]) / math.log(2)
    assert ratio.shape == (2, 4, 4) and np.abs(wanted).min() > 1e-2
    assert np.allclose(ratio.sum(axis=(1, 2)), wanted, atol=1e-4)


def test_the_map_of_one_block_is_the_ratio_of_conditional_densities(maps):
    # Ren et al., arXiv 1906.02845: log p(x_i | x_<i) - log p_0(x_i | x_<i). A token changes its own share and those of
    # later tokens in the order of the block, and none before it.
    _, mapped = maps
    changed = IMAGES.images.copy()
    changed[2, 1, 2] = (changed[2, 1, 2] + 8) % 17
    other = ArraySource("changed", changed, IMAGES.labels, 17, 3)
    before, after = (difference(mapped(s, [1, 2]), mapped(s, [0, 0]))[0].reshape(-1) for s in (IMAGES, other))
    differs = np.abs(before - after) > 1e-6
    assert not differs[:6].any() and differs[6:].sum() > 5


def test_maps_of_grids_of_different_tokens_are_compared_on_their_common_grid():
    fine, coarse = np.arange(16.0).reshape(1, 4, 4), np.array([[[10.0, 18], [42, 50]]])
    assert np.array_equal(difference(fine, coarse), np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"of the same images, got \[1, 4, 4\] and \[1, 2, 4\]"):
        difference(fine, np.zeros((1, 2, 4)))
