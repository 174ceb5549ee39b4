"""Held-out likelihood and classification."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.core.config import FlowConfig
from starflow_jax.core.figures import write_json
from starflow_jax.data.sources.digits import digits
from starflow_jax.evaluation import (
    BitsPerDim,
    all_dequantised,
    bayes_accuracy,
    fit_class_gaussians,
    log_probs,
    score_flow,
    score_gaussian,
    scores_table,
)
from starflow_jax.evaluation.likelihood.bayes_classifier import classify
from starflow_jax.flows.parameters import abstract, merge

CONFIG = FlowConfig(
    family="tarflow",
    channels=1,
    image_size=8,
    patch_size=2,
    width=16,
    num_blocks=2,
    layers_per_block=1,
    head_dim=8,
    num_classes=10,
)
KEY = jax.random.key(5)
SOURCE = digits("test").subset(np.arange(30), "thirty")
DIMS = 64


def made(config, size):
    """Definition and parameters of a flow with random weights; of size 0 it is the identity."""
    definition, shapes = abstract(config)
    random = np.random.default_rng(0)
    return definition, jax.tree.map(lambda a: np.float32(size * random.normal(size=a.shape)), shapes)


@pytest.fixture(scope="module")
def identity():
    return made(CONFIG, 0.0)


@pytest.fixture(scope="module")
def moved():
    return made(CONFIG, 0.1)


def test_bits_per_dim_of_a_new_flow_are_those_of_a_standard_normal(identity):
    draws = all_dequantised(KEY, SOURCE, 3).astype(np.float64).reshape(3, len(SOURCE), -1)
    scores = score_flow(identity[1], CONFIG, SOURCE, KEY, draws=3, batch_size=8)
    nats = 0.5 * (draws**2).sum(-1) + 0.5 * DIMS * math.log(2 * math.pi)
    bits = (nats / DIMS + math.log(17 / 2)) / math.log(2)
    assert scores.bits_per_dim.mean == pytest.approx(bits.mean(), rel=1e-6)
    assert scores.bits_per_dim.image_error == pytest.approx(bits.mean(0).std(ddof=1) / math.sqrt(30), rel=1e-4)
    assert scores.bits_per_dim.draw_error == pytest.approx(bits.mean(1).std(ddof=1) / math.sqrt(3), rel=1e-3)
    # Every class has the same density: the first wins, and is right as often as it occurs.
    assert scores.accuracy.mean == pytest.approx(np.mean(SOURCE.labels == 0))


@pytest.fixture(scope="module")
def by_class(moved):
    return log_probs(moved[1], CONFIG, SOURCE, KEY, draws=2, batch_size=64, labels=np.arange(10))


def test_scores_do_not_depend_on_the_batch_size(moved, by_class):
    small, large = log_probs(moved[1], CONFIG, SOURCE, KEY, draws=2, batch_size=7, labels=np.arange(10)), by_class
    assert small.shape == (2, 30, 10) and np.ptp(small, axis=2).min() > 0
    np.testing.assert_allclose(small, large, rtol=1e-5)  # a matrix product rounds as its shape has it
    np.testing.assert_array_equal(classify(small), classify(large))


def test_every_image_is_scored_once_with_its_own_label_and_noise(moved, by_class):
    found = by_class[:, np.arange(30), SOURCE.labels]
    np.testing.assert_allclose(log_probs(moved[1], CONFIG, SOURCE, KEY, draws=2, batch_size=7), found, rtol=1e-5)
    definition, params = moved
    score = jax.jit(lambda params, x, labels: merge(definition, params).log_prob(x, labels))
    draws = all_dequantised(KEY, SOURCE, 2)
    for draw in range(2):
        direct = score(params, draws[draw], jnp.asarray(SOURCE.labels))
        np.testing.assert_allclose(found[draw], direct, rtol=1e-5)
    assert not np.allclose(found[0], found[1])


def test_draws_are_uniform_within_the_cell_of_their_level():
    draws = all_dequantised(KEY, SOURCE, 4)
    noise = (draws + 1) * (17 / 2) - SOURCE.images
    assert noise.min() > -1e-5 and noise.max() < 1 + 1e-5
    assert noise.mean() == pytest.approx(0.5, abs=0.01) and noise.var() == pytest.approx(1 / 12, abs=0.005)


def test_an_unconditional_flow_has_no_accuracy():
    config = FlowConfig(**{**vars(CONFIG), "num_classes": 0})
    scores = score_flow(made(config, 0.0)[1], config, SOURCE, KEY, draws=1)
    assert scores.accuracy is None
    assert math.isnan(scores.bits_per_dim.draw_error) and scores.bits_per_dim.image_error > 0


def test_standard_errors_by_hand():
    bits = np.array([[1.0, 3.0], [2.0, 6.0]])  # two draws of two images
    found = BitsPerDim.from_log_probs(-(bits * math.log(2)) * 5, dims=5, levels=2)
    assert (found.mean, found.images, found.draws) == (3.0, 2, 2)
    assert found.image_error == pytest.approx(3.0 / 2)  # 1.5 and 4.5
    assert found.draw_error == pytest.approx(2.0 / 2)  # 2 and 4


def test_densities_are_averaged_over_draws_and_not_their_logarithms():
    # Class 0 explains one draw very well, class 1 explains both a little.
    scores = np.log(np.array([[[0.9, 0.3]], [[1e-9, 0.3]]]))
    assert classify(scores)[0] == 0 and scores.mean(axis=0).argmax() == 1
    accuracy = bayes_accuracy(scores, np.array([0]))
    assert (accuracy.mean, accuracy.one_draw, accuracy.correct, accuracy.images) == (1.0, 0.5, 1, 1)


def test_accuracy_and_its_error():
    scores = np.zeros((1, 4, 3))
    scores[0, np.arange(4), [0, 1, 2, 2]] = 1.0
    accuracy = bayes_accuracy(scores, np.array([0, 1, 2, 0]))
    assert accuracy.mean == 0.75 and accuracy.error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_a_density_that_is_nan_is_no_classification():
    with pytest.raises(ValueError, match="NaN"):
        bayes_accuracy(np.full((1, 2, 3), np.nan), np.zeros(2, int))
    with pytest.raises(ValueError, match="labels"):
        bayes_accuracy(np.zeros((1, 2, 3)), np.zeros(3, int))


def test_the_baseline_is_scored_on_the_same_draws():
    gaussian = fit_class_gaussians(digits("train"), components=(1,), regularisation=(0.1,), draws=1)
    scores = score_gaussian(gaussian, SOURCE, KEY, draws=2)
    found = np.stack([gaussian.class_log_prob(x) for x in all_dequantised(KEY, SOURCE, 2)])
    own = found[:, np.arange(30), SOURCE.labels]
    assert scores.bits_per_dim.mean == pytest.approx(BitsPerDim.from_log_probs(own, DIMS, 17).mean)
    assert scores.accuracy == bayes_accuracy(found, SOURCE.labels)


@pytest.mark.parametrize("options", [{"draws": 0}, {"draws": 1, "batch_size": 0}])
def test_numbers_out_of_range_are_refused(identity, options):
    with pytest.raises(ValueError, match="must be an integer >= 1, got 0"):
        log_probs(identity[1], CONFIG, SOURCE, KEY, **options)


def test_table_and_json(identity, tmp_path):
    scores = score_flow(identity[1], CONFIG, SOURCE, KEY, draws=1).to_dict()
    lines = scores_table([scores]).splitlines()
    assert len(lines) == 3 and len(set(map(len, lines))) == 1 and "flow" in lines[2]
    write_json(tmp_path / "new" / "scores.json", scores)
    assert json.loads((tmp_path / "new" / "scores.json").read_text())["bits_per_dim"]["draw_error"] is None
