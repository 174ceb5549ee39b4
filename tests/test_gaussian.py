"""The Gaussian baseline: against closed forms, and the numbers it reaches on digits."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from starflow_jax.data import ArraySource
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.data.sources.digits import digits
from starflow_jax.evaluation import fit_class_gaussians, score_class_gaussians


@pytest.fixture(scope="module")
def baseline():
    return fit_class_gaussians(digits("train"))


def test_digits_baseline_reaches_its_published_numbers(baseline):
    assert (baseline.components, baseline.regularisation) == (1, 0.1)
    scores = score_class_gaussians(baseline, digits("test"), draws=4)
    assert scores.bits_per_dim == pytest.approx(2.57, abs=0.02)
    assert scores.bits_per_dim_unlabelled == pytest.approx(2.60, abs=0.02)
    assert scores.accuracy == pytest.approx(0.98, abs=0.01)


def test_it_generalises_and_does_not_only_memorise(baseline):
    train = score_class_gaussians(baseline, digits("train"), seed=9)
    test = score_class_gaussians(baseline, digits("test"), seed=9)
    assert train.bits_per_dim < test.bits_per_dim < np.log2(17)


def test_densities_are_those_of_the_fitted_gaussians(baseline):
    images = digits("test").images[:5]
    x = dequantise(images, np.random.default_rng(1).random(images.shape), 17)
    found = baseline.class_log_prob(x)
    assert found.shape == (5, 10)
    for label, mixture in enumerate(baseline.mixtures):
        expected = multivariate_normal(mixture.means_[0], mixture.covariances_[0]).logpdf(x.reshape(5, -1))
        np.testing.assert_allclose(found[:, label], expected, rtol=1e-8)


def test_bayes_rule(baseline):
    images = digits("test").images[:50]
    x = dequantise(images, np.full(images.shape, 0.5), 17)
    joint = baseline.class_log_prob(x) + baseline.log_prior
    np.testing.assert_allclose(baseline.log_prob(x), np.logaddexp.reduce(joint, axis=1))
    np.testing.assert_array_equal(baseline.classify(x), joint.argmax(axis=1))
    assert np.exp(baseline.log_prior).sum() == pytest.approx(1)


def test_two_components_are_chosen_where_classes_have_two_modes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(2, dtype=np.int32), 200)
    centres = np.where(rng.random(400) < 0.5, 40, 200) + 15 * labels
    images = (centres[:, None] + rng.normal(0, 5, (400, 4))).clip(0, 255).astype(np.uint8)
    source = ArraySource("modes", images.reshape(400, 2, 2, 1), labels, levels=256, num_classes=2)
    model = fit_class_gaussians(source, components=(1, 2), regularisation=(1.0,), draws=1)
    assert model.components == 2


def test_bad_arguments_are_refused(baseline):
    source = digits("test")
    with pytest.raises(ValueError, match="components must be"):
        fit_class_gaussians(source, components=())
    with pytest.raises(ValueError, match="regularisation must be"):
        fit_class_gaussians(source, regularisation=(-1.0,))
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        fit_class_gaussians(source, draws=0)
    few = source.subset(np.arange(3), "few")
    with pytest.raises(ValueError, match="examples of every class, got 0 of class"):
        fit_class_gaussians(few, components=(1,), regularisation=(0.1,))
    three = ArraySource("three", source.images[:1], np.zeros(1, np.int32), levels=17, num_classes=3)
    with pytest.raises(ValueError, match="10 classes, got 3"):
        score_class_gaussians(baseline, three)
