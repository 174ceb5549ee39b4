"""Metrics of samples against figures that their published implementations gave for the same features.

Recorded with torch-fidelity 0.4.0 (`fid_statistics_to_metric`, `isc_features_to_metric`, `kid_features_to_metric` with
one subset of everything, `prc_features_to_metric`) and torchmetrics 1.9.0 (`_compute_fid`, `poly_mmd`) in PyTorch 2.14.
"""

import numpy as np
import pytest

from starflow_jax.evaluation.samples.features.class_sums import ClassSums, split_index
from starflow_jax.evaluation.samples.features.moments import Moments
from starflow_jax.evaluation.samples.metrics.frechet_distance import frechet_distance
from starflow_jax.evaluation.samples.metrics.inception_score import inception_score
from starflow_jax.evaluation.samples.metrics.kernel_distance import squared_discrepancy
from starflow_jax.evaluation.samples.metrics.precision_recall import precision_recall


@pytest.fixture(scope="module")
def features():
    """Real features [1500, 64], features of samples [1200, 64], and logits [1500, 10]."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(1500, 64)).astype(np.float32) + 0.1
    samples = (rng.normal(size=(1200, 64)) * 1.1).astype(np.float32)
    return real, samples, rng.normal(size=(1500, 10)).astype(np.float32) * 2


def test_frechet_distance(features):
    distance = frechet_distance(*map(Moments.from_features, features[:2]))
    assert distance == pytest.approx(3.10408248349421, rel=1e-6)  # torch-fidelity
    assert distance == pytest.approx(3.104082465112583, rel=1e-9)  # torchmetrics


def test_inception_score(features):
    sums = ClassSums.from_logits(features[2], split_index(np.arange(1500), 1500, 10), 10)
    assert inception_score(sums) == pytest.approx((2.6252807701947782, 0.10876735191794688), rel=1e-6)


def test_kernel_distance(features):
    real, samples = (x.astype(np.float64) for x in features[:2])
    distance = squared_discrepancy(real[:1200], samples)
    assert distance == pytest.approx(0.032366275787353516, rel=1e-4)  # torch-fidelity, in float32
    assert distance == pytest.approx(0.032366433682369244, rel=1e-9)  # torchmetrics


def test_precision_and_recall(features):
    real, samples, _ = features
    shares = precision_recall(real, samples)
    assert (shares.precision, shares.recall) == pytest.approx((0.25833332538604736, 0.8920000195503235), abs=1e-6)
