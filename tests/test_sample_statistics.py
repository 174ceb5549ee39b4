"""Statistics of sample quality: each against its definition, written out, and against scipy and torchmetrics."""

import math

import numpy as np
import pytest

from starflow_jax.evaluation.samples.features.class_sums import ClassSums, split_index
from starflow_jax.evaluation.samples.features.feature_network import (
    FeatureNetwork,
    Features,
    extract_features,
    feature_moments,
    named_network,
)
from starflow_jax.evaluation.samples.features.feature_statistics import (
    feature_statistics,
    read_arrays,
    read_statistics,
    write_statistics,
)
from starflow_jax.evaluation.samples.features.inception import network_input
from starflow_jax.evaluation.samples.features.moments import Moments, total_moments
from starflow_jax.evaluation.samples.metrics.clip_score import clip_score, pair_scores
from starflow_jax.evaluation.samples.metrics.frechet_distance import frechet_distance
from starflow_jax.evaluation.samples.metrics.inception_score import inception_score
from starflow_jax.evaluation.samples.metrics.kernel_distance import kernel_distance, squared_discrepancy
from starflow_jax.evaluation.samples.metrics.metric import compute_metrics
from starflow_jax.evaluation.samples.metrics.precision_recall import precision_recall

RANDOM = np.random.default_rng(0)
ONE = RANDOM.normal(size=(90, 6)) @ RANDOM.normal(size=(6, 6)) + 3.0
OTHER = RANDOM.normal(size=(70, 6)) @ RANDOM.normal(size=(6, 6)) + 2.5


def test_moments_are_numpys_however_the_parts_are_grouped():
    far = ONE + 1e6  # where sums of squares would have lost half their digits
    a, b, c = (Moments.from_features(part) for part in np.split(far, [20, 21]))
    for found in (a + b + c, a + (b + c), c + a + b, total_moments(np.array_split(far, 9)), Moments.from_features(far)):
        assert found.count == 90
        np.testing.assert_allclose(found.mean, far.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(found.covariance, np.cov(ONE, rowvar=False), rtol=1e-7)


def test_small_parts_are_summed_up_together(monkeypatch):
    """Adding up costs d^2: of 90 batches of 30 vectors it is done a few times, and not 89."""
    sizes, from_features = [], Moments.from_features.__func__

    def counted(cls, features):
        sizes.append(len(features))
        return from_features(cls, features)

    features = RANDOM.normal(size=(2700, 3)).astype(np.float32)
    parts = np.split(features, 90)
    monkeypatch.setattr(Moments, "from_features", classmethod(counted))
    network = FeatureNetwork("same", "1", lambda rows: rows)
    for moments in (
        lambda: total_moments(parts),
        lambda: feature_moments(network, parts),
        lambda: feature_statistics([Features(part, None) for part in parts], 2700).moments,
    ):
        found = moments()
        assert sum(sizes) == found.count == 2700 and len(sizes) == 3
        sizes.clear()
        np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="one width, got 6 and 3"):
        total_moments([ONE, ONE[:, :3]])


@pytest.mark.parametrize("width", [6, 40])  # of 40 features, 90 and 70 vectors; of 6, many more
def test_frechet_distance_is_that_of_scipys_root(width):
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (features @ RANDOM.normal(size=(6, width)) for features in (ONE, OTHER))
    a, b = a + RANDOM.normal(size=a.shape), b + RANDOM.normal(size=b.shape)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    step = a.mean(axis=0) - b.mean(axis=0)
    expected = step @ step + np.trace(first + second) - 2 * np.trace(linalg.sqrtm(first @ second)).real
    assert frechet_distance(Moments.from_features(a), Moments.from_features(b)) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(Moments.from_features(b), Moments.from_features(a)) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_singular_covariances():
    """Fewer vectors than features, and features that never move: those of three axes lie in a wider space."""
    basis = np.linalg.qr(RANDOM.normal(size=(50, 50)))[0][:, :3]
    a, b = Moments.from_features(ONE[:, :3] @ basis.T), Moments.from_features(OTHER[:, :3] @ basis.T)
    inside = frechet_distance(Moments.from_features(ONE[:, :3]), Moments.from_features(OTHER[:, :3]))
    assert frechet_distance(a, b) == pytest.approx(inside, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    still = Moments.from_features(np.ones((5, 4)))
    assert frechet_distance(still, Moments.from_features(np.full((7, 4), 3.0))) == pytest.approx(16.0)


def test_frechet_distance_in_one_dimension_by_hand():
    a, b = np.array([[0.0], [2.0]]), np.array([[5.0], [9.0]])  # deviations sqrt 2 and sqrt 8
    assert frechet_distance(Moments.from_features(a), Moments.from_features(b)) == pytest.approx(36.0 + 2.0)


def test_kernel_distance_is_the_unbiased_sum_over_pairs():
    x, y = ONE[:9], OTHER[:7]
    kernel = lambda a, b: (a @ b / 6 + 1) ** 3  # noqa: E731
    within = [np.mean([kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, y)]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert squared_discrepancy(x, y) == pytest.approx(expected, rel=1e-10)
    whole = kernel_distance(x, y, subsets=1, size=1000)  # the smaller set is taken whole
    assert whole.size == 7
    assert kernel_distance(x[:7], y, subsets=4).mean == pytest.approx(squared_discrepancy(x[:7], y))
    assert kernel_distance(x[:7], y, subsets=4).std == pytest.approx(0.0, abs=1e-9)


def test_kernel_distance_of_one_distribution_is_zero_on_average_whatever_the_size():
    random = np.random.default_rng(1)
    for size in (10, 40):
        found = [squared_discrepancy(*random.normal(size=(2, size, 4))) for _ in range(400)]
        assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(400)
    drawn = kernel_distance(ONE, OTHER, subsets=50, size=30)
    assert abs(drawn.mean - squared_discrepancy(ONE, OTHER)) < 4 * drawn.std / math.sqrt(50)
    assert kernel_distance(ONE, OTHER, seed=1, size=30) == kernel_distance(ONE, OTHER, seed=1, size=30)


def test_inception_score_is_its_definition_in_parts():
    logits = RANDOM.normal(size=(25, 4)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    places = np.arange(25)
    split = split_index(places, 25, 3)
    expected = []
    for number in range(3):
        own = p[split == number]
        expected.append(np.exp(np.mean(np.sum(own * (np.log(own) - np.log(own.mean(axis=0))), axis=1))))
    parts = [ClassSums.from_logits(logits[i], split[i], 3) for i in np.array_split(places, 4)]
    mean, std = inception_score(parts[0] + parts[1] + parts[2] + parts[3])
    assert (mean, std) == (pytest.approx(np.mean(expected)), pytest.approx(np.std(expected)))


def test_inception_score_of_sure_answers_is_their_variety():
    sure = 1000.0 * np.eye(5)[np.arange(20) % 5]
    assert inception_score(ClassSums.from_logits(sure, np.zeros(20, int), 1))[0] == pytest.approx(5.0)
    assert inception_score(ClassSums.from_logits(np.zeros((20, 5)), np.zeros(20, int), 1))[0] == pytest.approx(1.0)


@pytest.mark.parametrize("block", [16, 4096])
def test_precision_and_recall_are_those_of_all_pairs(block):
    random = np.random.default_rng(2)
    real, found = random.normal(size=(50, 3)) + 100.0, 0.8 * random.normal(size=(61, 3)) + 101.0
    distance = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=2)  # noqa: E731
    radius = lambda a: np.sort(distance(a, a), axis=1)[:, 3]  # noqa: E731  # place 0 is its own
    expected = (
        (distance(found, real) <= radius(real)).any(axis=1).mean(),
        (distance(real, found) <= radius(found)).any(axis=1).mean(),
    )
    shares = precision_recall(real, found, block=block)
    assert (shares.precision, shares.recall) == pytest.approx(expected)
    assert 0 < shares.precision < 1 and 0 < shares.recall < 1


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_precision_and_recall_with_one_vector_far_away(far):
    """A real vector at 1e4 decides of its own ball alone; the others' are those of float64."""
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(5)
    real, found = random.normal(size=(301, 8)), 1.1 * random.normal(size=(280, 8))
    real[7] += far
    distances = metrics.pairwise_distances

    def inside(points, centres):
        radius = np.sort(distances(centres), axis=1)[:, 3]
        return (distances(points, centres) <= radius).any(axis=1).mean()

    expected = inside(found, real), inside(real, found)
    shares = precision_recall(real, found)
    assert (shares.precision, shares.recall) == pytest.approx(expected, abs=0.5 / 301)
    assert min(shares.precision, shares.recall) > 0.3 and shares.precision < 1


def test_precision_and_recall_at_the_ends():
    here, there = RANDOM.normal(size=(40, 5)), RANDOM.normal(size=(40, 5)) + 50.0
    twice = np.concatenate([here] * 5)  # every ball of radius 0
    assert precision_recall(here, here) == precision_recall(twice, here)
    assert precision_recall(here, here).precision == precision_recall(here, here).recall == 1.0
    assert precision_recall(here, there).precision == precision_recall(here, there).recall == 0.0
    narrow = precision_recall(here, here[:8] * 0.01)
    assert narrow.precision == 1.0 and narrow.recall < 0.2


def test_clip_score_by_hand():
    pictures = np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    captions = np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    scores = pair_scores(pictures, captions)
    np.testing.assert_allclose(scores, [100.0, 0.0, 50.0 * math.sqrt(2), 0.0])
    assert clip_score(scores).mean == pytest.approx(scores.mean()) and clip_score(scores).pairs == 4


def test_statistics_in_parts_and_from_a_file(tmp_path):
    features, logits = ONE.astype(np.float32), RANDOM.normal(size=(90, 4)).astype(np.float32)
    whole = feature_statistics([Features(features, logits)], 90)
    parts = feature_statistics((Features(features[i : i + 13], logits[i : i + 13]) for i in range(0, 90, 13)), 90)
    real = feature_statistics([Features(OTHER.astype(np.float32), None)], 70)
    expected = compute_metrics(whole, real, ("fid", "is", "kid", "pr"))
    assert set(expected) == {"fid", "is", "is_std", "kid", "kid_std", "precision", "recall"}
    assert compute_metrics(parts, real, ("fid", "is", "kid", "pr")) == pytest.approx(expected)
    write_statistics(tmp_path / "s.npz", whole, "me")
    assert compute_metrics(read_statistics(tmp_path / "s.npz", "me"), real, ("fid", "is", "kid", "pr")) == expected
    assert read_statistics(tmp_path / "s.npz", "you") is None
    torn = (tmp_path / "s.npz").read_bytes()
    for damaged in (torn[:-40], torn[:300] + bytes([torn[300] ^ 1]) + torn[301:], b"", b"\x93NUMPY"):
        (tmp_path / "t.npz").write_bytes(damaged)
        assert read_arrays(tmp_path / "t.npz") is None
    with pytest.raises(ValueError, match="must cover 91 images, got 90"):
        feature_statistics([Features(features, logits)], 91)


def test_distance_of_videos_by_a_network_of_clips():
    """FVD: the same distance, over features of clips; batches fill up and change nothing."""
    network = FeatureNetwork("motion", "1", lambda clips: np.diff(clips.astype(float), axis=1).mean(axis=(2, 3, 4)))
    clips = RANDOM.integers(0, 256, (20, 5, 4, 4, 1)).astype(np.uint8)
    still = np.repeat(clips[:, :1], 5, axis=1)
    moving = feature_moments(network, np.array_split(clips, 3))
    assert moving.mean.shape == (4,) and frechet_distance(moving, moving) < 1e-9
    assert frechet_distance(moving, feature_moments(network, [still])) > 1.0
    whole, parts = (extract_features(network, clips, size).features for size in (20, 7))
    np.testing.assert_array_equal(whole, parts)


BAD = {
    "no numbers": (lambda x: "features", "must return features as numbers"),
    "another shape": (
        lambda x: np.zeros((len(x), 2, 2)),
        r"must return features \[4, d\] for 4 images, got \[4, 2, 2\]",
    ),
    "another count": (lambda x: np.zeros((3, 2)), r"got \[3, 2\]"),
    "not finite": (lambda x: np.full((len(x), 2), np.nan), "must return finite features, got 8 values"),
    "three values": (lambda x: (x, x, x), "got 3 values"),
    "bad logits": (lambda x: (np.zeros((len(x), 2)), np.zeros(len(x))), "must return logits"),
}


@pytest.mark.parametrize("case", BAD)
def test_outputs_of_a_network_are_checked(case):
    look, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        extract_features(FeatureNetwork("mine", "1", look), np.zeros((4, 2, 2, 1), np.uint8), 4)


def test_named_functions(tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text("def of(x):\n    return x.reshape(len(x), -1)[:, :3]\n")
    (tmp_path / "my_mistake.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    network = named_network("my_features:of")
    assert extract_features(network, np.ones((2, 2, 2, 1), np.uint8), 2).features.tolist() == [[1, 1, 1], [1, 1, 1]]
    for name, message in {
        "my_features:gone": "has no function gone",
        "my_mistake:of": "cannot be imported: ZeroDivisionError",
        "no_such_module:of": "no_such_module cannot be imported",
        "my_features:": "MODULE:FUNCTION, got 'my_features:'",
    }.items():
        with pytest.raises(ValueError, match=message):
            named_network(name)


def test_bad_features_are_refused():
    for bad, message in {
        "one axis": (np.zeros(3), r"must be \[n, d\]"),
        "none": (np.zeros((0, 3)), r"both above 0"),
        "not finite": (np.array([[np.inf]]), "1 values that are not"),
    }.values():
        with pytest.raises(ValueError, match=message):
            Moments.from_features(bad)
    with pytest.raises(ValueError, match="one width, got 6 and 3"):
        frechet_distance(Moments.from_features(ONE), Moments.from_features(ONE[:, :3]))
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        frechet_distance(Moments.from_features(ONE[:1]), Moments.from_features(ONE))
    with pytest.raises(ValueError, match="more than 3 vectors of each set, got 3"):
        precision_recall(ONE, ONE[:3])


def test_figures_and_resized_images_are_those_of_clean_fid():
    fid, resize = pytest.importorskip("cleanfid.fid"), pytest.importorskip("cleanfid.resize")
    moments = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (ONE, OTHER)]
    distance = frechet_distance(Moments.from_features(ONE), Moments.from_features(OTHER))
    assert distance == pytest.approx(fid.frechet_distance(*moments[0], *moments[1]), rel=1e-5)
    images = np.random.default_rng(1).integers(0, 256, (1, 350, 40, 3)).astype(np.uint8)
    clean, pytorch = (np.asarray(network_input(images, name))[0] for name in ("clean", "half-pixel"))
    np.testing.assert_allclose(clean * 128 + 128, resize.build_resizer("clean")(images[0]), atol=0.02)
    np.testing.assert_allclose((pytorch + 1) * 127.5, resize.build_resizer("legacy_pytorch")(images[0]), atol=0.02)


def test_figures_are_those_of_torchmetrics():
    torch = pytest.importorskip("torch")
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Same(torch.nn.Module):
        num_features = 6

        def forward(self, x):
            return x

    metric = fid.FrechetInceptionDistance(feature=Same(), input_img_size=(6,), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(ONE), real=True)
    metric.update(torch.from_numpy(OTHER), real=False)
    assert frechet_distance(Moments.from_features(ONE), Moments.from_features(OTHER)) == pytest.approx(
        float(metric.compute()), rel=1e-5
    )
