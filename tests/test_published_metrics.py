"""Metrics of samples against figures that their published implementations gave for the same features.

Recorded with torch-fidelity 0.4.0 (`fid_statistics_to_metric`, `isc_features_to_metric`, `kid_features_to_metric` with
one subset of everything, `prc_features_to_metric`) and torchmetrics 1.9.0 (`_compute_fid`, `poly_mmd`) in PyTorch 2.14,
and with clean-fid 0.1.35 (`frechet_distance`, `kernel_distance` with one subset of everything in float64, and
`get_folder_features` of PNG files with the network of `test_files_to_distances`) in PyTorch 2.13.
"""

import numpy as np
import pytest

from starflow_jax.evaluation.samples.features.class_sums import ClassSums, split_index
from starflow_jax.evaluation.samples.features.inception import network_input
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
    assert distance == pytest.approx(3.1040824834941816, rel=1e-6)  # clean-fid


def test_inception_score(features):
    sums = ClassSums.from_logits(features[2], split_index(np.arange(1500), 1500, 10), 10)
    assert inception_score(sums) == pytest.approx((2.6252807701947782, 0.10876735191794688), rel=1e-6)


def test_kernel_distance(features):
    real, samples = (x.astype(np.float64) for x in features[:2])
    distance = squared_discrepancy(real[:1200], samples)
    assert distance == pytest.approx(0.032366275787353516, rel=1e-4)  # torch-fidelity, in float32
    assert distance == pytest.approx(0.032366433682369244, rel=1e-9)  # torchmetrics
    assert distance == pytest.approx(0.03236643368236855, rel=1e-9)  # clean-fid


def test_precision_and_recall(features):
    real, samples, _ = features
    shares = precision_recall(real, samples)
    assert (shares.precision, shares.recall) == pytest.approx((0.25833332538604736, 0.8920000195503235), abs=1e-6)


@pytest.mark.parametrize(
    ("resize", "frechet", "kernel"),
    [
        ("clean", 0.08998088596671841, -0.006608645479167841),
        ("half-pixel", 0.06460741446840104, -0.0051685110838657344),
    ],
)
def test_files_to_distances(resize, frechet, kernel):
    """Images that are enlarged and reduced by the modes "clean" and "legacy_pytorch" of clean-fid, to the distances."""
    rng = np.random.default_rng(2)
    sets = [rng.integers(0, 256, (8, *shape, 3)).astype(np.uint8) for shape in ((20, 30), (310, 300))]
    matrix = rng.normal(size=(3 * 23 * 23, 4), scale=0.02).astype(np.float32)

    def network(images):
        pixels = np.asarray(network_input(images, resize))
        pixels = pixels * 128 + 128 if resize == "clean" else (pixels + 1) * 127.5
        pooled = pixels.transpose(0, 3, 1, 2).reshape(8, 3, 23, 13, 23, 13).mean(axis=(3, 5))
        return pooled.reshape(8, -1) / 255 @ matrix

    features = [network(images) for images in sets]
    assert frechet_distance(*map(Moments.from_features, features)) == pytest.approx(frechet, rel=1e-4)
    assert squared_discrepancy(*(x.astype(np.float64) for x in features)) == pytest.approx(kernel, rel=1e-4)
