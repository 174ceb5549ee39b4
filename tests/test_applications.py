"""Applications of likelihood: areas under curves, universal codes, detection, filtering, memorisation."""

import itertools
import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from random_flows import random_flow
from sweep_runs import params_of, write_run

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig, FlowConfig
from starflow_jax.core.figures import finite
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.data.sources.digits import digits
from starflow_jax.evaluation.applications import likelihood_study as study
from starflow_jax.evaluation.applications.code_length import code_lengths
from starflow_jax.evaluation.applications.filtering import contaminate, filtering, suspicion_scores
from starflow_jax.evaluation.applications.memorisation import Copying, Membership, nearest
from starflow_jax.evaluation.applications.other_images import other_images
from starflow_jax.evaluation.applications.out_of_distribution import (
    TrainingStatistics,
    detect,
    detection_table,
    ood_scores,
)
from starflow_jax.evaluation.applications.roc import auroc, precision_at, roc_curve

DIGITS = f"{Path(__file__).parents[1] / 'experiments' / 'digits.py'}:tiny"
RNG = np.random.default_rng(0)


def test_auroc_counts_pairs_ties_half():
    high, low = RNG.integers(0, 5, 40).astype(float), RNG.integers(-1, 4, 30).astype(float)
    pairs = np.mean([(a > b) + 0.5 * (a == b) for a in high for b in low])
    assert math.isclose(auroc(high, low).area, pairs)
    # The other way round, and under any increasing map of the scores.
    assert math.isclose(auroc(low, high).area, 1 - pairs)
    assert math.isclose(auroc(np.exp(high), np.exp(low)).area, pairs)
    false, true = roc_curve(high, low)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert math.isclose(np.trapezoid(true, false), pairs)


def test_auroc_of_scores_that_are_apart_or_alike():
    assert auroc(np.array([2.0, np.inf]), np.array([1.0, -np.inf])).area == 1
    assert auroc(np.zeros(3), np.zeros(4)).area == 0.5
    assert math.isnan(auroc(np.zeros(1), np.zeros(4)).error)
    from sklearn.metrics import roc_auc_score

    scores, kinds = RNG.normal(size=50).round(1), np.arange(50) % 3 == 0
    assert math.isclose(auroc(scores[kinds], scores[~kinds]).area, roc_auc_score(kinds, scores))


def test_the_error_of_auroc_is_its_spread_over_samples():
    draws = [auroc(RNG.normal(0.7, 1, 60), RNG.normal(0, 1, 40)) for _ in range(300)]
    assert math.isclose(np.std([d.area for d in draws]), np.mean([d.error for d in draws]), rel_tol=0.15)


@pytest.mark.parametrize("bad", [np.array([np.nan]), np.array([]), np.zeros((2, 2))])
def test_auroc_refuses(bad):
    with pytest.raises(ValueError, match="positives must"):
        auroc(bad, np.zeros(2))


def test_precision_at_k():
    scores, wanted = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, False, True, False])
    assert precision_at(scores, wanted, 1) == 1
    assert precision_at(scores, wanted, 2) == 0.75  # one of two tied ones is wanted
    assert precision_at(scores, wanted, 4) == 0.5
    with pytest.raises(ValueError, match="k must be at most the 4 scores, got 5"):
        precision_at(scores, wanted, 5)


def test_the_universal_code_is_a_probability():
    # Over all images of 1 x 4 pixels of 3 levels: the plain code's probabilities sum to 1, and half of that again for
    # the code of differences, so that the shorter one of both cannot sum to more than 1.
    images = np.array(list(itertools.product(range(3), repeat=4)), np.uint8).reshape(-1, 1, 4, 1)
    bits = code_lengths(images, 3)
    assert np.sum(2.0**-bits) <= 1.0
    # Symbol by symbol, exactly: (count + 1/2) / (t + levels / 2).
    for image, length in zip(images.reshape(-1, 4).tolist(), bits, strict=True):
        found = []
        for symbols in (image, np.mod(np.diff(image, prepend=0), 3).tolist()):
            p = Fraction(1)
            for t, symbol in enumerate(symbols):
                p *= (symbols[:t].count(symbol) + Fraction(1, 2)) / (t + Fraction(3, 2))
            found.append(1 - math.log2(p))
        assert math.isclose(length, min(found))


def test_simple_images_have_short_codes():
    flat = np.full((1, 8, 8, 1), 5, np.uint8)
    noise = RNG.integers(0, 17, (1, 8, 8, 1)).astype(np.uint8)
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8)[None, None, :, None], (1, 8, 8, 1))
    assert code_lengths(flat, 17)[0] < code_lengths(ramp, 17)[0] < code_lengths(noise, 17)[0]
    with pytest.raises(ValueError, match="from 0 to 4"):
        code_lengths(flat, 5)


def test_foreign_images_have_the_shape_and_levels_of_the_familiar():
    source = digits("test").subset(np.arange(30), "few")
    others = other_images(source)
    assert next(iter(others)) == "photographs" and len(others) == 7
    for other in others.values():
        assert other.images.shape == source.images.shape and other.levels == 17
    assert (others["negatives"].images + source.images == 16).all()
    shuffled = np.sort(others["shuffled pixels"].images.reshape(30, -1))
    assert (shuffled == np.sort(source.images.reshape(30, -1))).all()
    assert (np.ptp(others["constant"].images, axis=(1, 2, 3)) == 0).all()
    assert (other_images(source)["noise"].images == others["noise"].images).all()


def test_a_likelihood_that_prefers_simple_images_is_mended_by_complexity():
    # A model that needs half a universal code's bits for digits, and the whole of them for everything else.
    source = digits("test")
    others = {n: o for n, o in other_images(source).items() if n in ("constant", "faint", "noise")}
    known = TrainingStatistics.from_training(source, 0.5 * code_lengths(source.images, 17))
    rows = detect(
        known,
        (source, 0.5 * code_lengths(source.images, 17)),
        {name: (other, code_lengths(other.images, 17)) for name, other in others.items()},
    )
    areas = {row.name: {score: area.area for score, area in row.areas.items()} for row in rows}
    assert areas["constant"]["likelihood"] < 0.1 and areas["noise"]["likelihood"] > 0.99
    assert areas["constant"]["typicality"] > 0.9
    assert all(of_set["complexity ratio"] > 0.99 for of_set in areas.values())
    assert {row.name: row.likelier for row in rows}["constant"] > 0.9


def test_contamination_marks_what_it_changed():
    source = digits("test")
    made = contaminate(source, mislabelled=0.1, damaged=0.05, seed=3)
    assert made.mislabelled.sum() == 36 and made.damaged.sum() == 18 and not (made.mislabelled & made.damaged).any()
    assert ((made.source.labels != source.labels) == made.mislabelled).all()
    changed = (made.source.images != source.images).any(axis=(1, 2, 3))
    assert changed[made.damaged].all() and not changed[~made.damaged].any()
    with pytest.raises(ValueError, match="sum to at most 1"):
        contaminate(source, mislabelled=0.9, damaged=0.2)


def test_filtering_by_a_perfect_density():
    # p(x | y) is high for the true class; damaged images are unlikely under all.
    source = digits("test")
    made = contaminate(source, mislabelled=0.1, damaged=0.05)
    by_class = np.where(np.arange(10) == source.labels[:, None], 0.0, -20.0) - 100.0 * made.damaged[:, None]
    rows = {(row.kind, row.score): row.precision for row in filtering(made, by_class[None])}
    assert rows["mislabelled", "label"] == 1 and rows["damaged", "image"] == 1 and rows["either", "example"] == 1
    # The score of the image knows nothing of labels.
    good = ~(made.mislabelled | made.damaged)
    image = suspicion_scores(by_class[None], made.source.labels)["image"]
    assert np.allclose(image[made.mislabelled], image[good][0])
    with pytest.raises(ValueError, match="two classes or more"):
        suspicion_scores(by_class[None, :, :1], made.source.labels)


def test_nearest_and_copies():
    train, new = RNG.normal(size=(50, 3, 2)), RNG.normal(size=(40, 3, 2))
    found = nearest(train[7:9] + 1e-3, train)
    assert found.index.tolist() == [7, 8] and np.allclose(found.distance, 1e-3)
    same = np.ones((2, 50), bool)
    same[0, 7] = False
    assert nearest(train[7:9], train, same=same).index[0] != 7
    held_out = nearest(new, train).distance
    copies = Copying.from_distances(nearest(train[:20] + 1e-3, train).distance, held_out)
    assert copies.area.area == 1 and copies.closer == 1
    assert Copying.from_distances(held_out, held_out).area.area == 0.5
    assert Membership.from_bits(np.array([1.0, 1.1]), np.array([2.0, 2.1])).area.area == 1
    with pytest.raises(ValueError, match=r"got \[2, 3\] and \[50, 3, 2\]"):
        nearest(train[:2, :, 0], train)


def test_what_overflows_is_most_foreign_least_likely_and_farthest():
    source = digits("test").subset(np.arange(40), "few")
    bits = np.linspace(100.0, 140.0, 40)
    broken = np.where(np.arange(40) < 10, np.nan, bits)
    known = TrainingStatistics.from_training(source, broken)
    assert known.mean_bits == bits[10:].mean()
    (row,) = detect(known, (source, bits), {"others": (source, broken)})
    assert row.not_finite == 10 and row.bits_per_dim == pytest.approx(bits[10:].mean() / 64)
    scores = ood_scores(known, source, broken)
    assert all(np.isinf(score[:10]).all() and np.isfinite(score[10:]).all() for score in scores.values())
    assert row.areas["likelihood"].area == pytest.approx(auroc(np.r_[np.full(10, 1e9), bits[10:]], bits).area)
    (none,) = detect(
        TrainingStatistics.from_training(source, np.full(40, np.nan)), (source, bits), {"others": (source, broken)}
    )
    assert none.areas["typicality"].area > 0.5 and "10" in detection_table([finite(none.to_dict())])

    points = RNG.normal(size=(8, 3))
    far = nearest(np.r_[points[:2], np.full((1, 3), np.nan), np.full((1, 3), np.inf)], np.r_[points, [[np.inf] * 3]])
    assert far.index[:2].tolist() == [0, 1] and np.isinf(far.distance[2:]).all()
    copying = Copying.from_distances(far.distance, np.array([1.0, 2.0, np.inf]))
    assert copying.not_finite == 3 and not math.isnan(copying.area.area) and copying.closer == 0.5
    member = Membership.from_bits(np.array([1.0, np.nan]), np.array([2.0, np.inf]))
    assert (member.train, member.held_out, member.not_finite) == (1.0, 2.0, 2) and member.area.area == 0.625
    by_class = np.array([[[-np.inf, -np.inf], [-1.0, -2.0]]])
    assert suspicion_scores(by_class, np.zeros(2, int))["label"].tolist() == [0.0, -1.0]


def test_an_unconditional_source_has_no_class_to_exchange():
    source = ArraySource("plain", np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32), 17, 1)
    with pytest.raises(ValueError, match="two classes or more"):
        contaminate(source, mislabelled=0.5, damaged=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few updates."""
    home = tmp_path_factory.mktemp("study")
    few = ["--config.train.steps=10", "--config.train.steps_per_call=10", "--config.flow.layers_per_block=1"]
    config = ["--config", DIGITS, "--config.sample.num=1", *few]
    assert main(["train", *config, "--workdir", str(home / "run"), "--quiet"]) == 0
    return home


@pytest.mark.slow
def test_the_study_of_a_run(run, capsys):
    options = ["--num", "40", "--draws", "1", "--candidates", "4", "--keep", "2", "--json", str(run / "s.json")]
    # The run is its own reference, so that every ratio of the two is 1.
    options += ["--reference", str(run / "run")]
    assert main(["study", "--workdir", str(run / "run"), "--out", str(run / "out"), *options]) == 0
    figures = json.loads((run / "s.json").read_text())
    assert {row["name"] for row in figures["out_of_distribution"]["sets"]} >= {"photographs", "noise", "constant"}
    assert figures["classification"]["accuracy"]["images"] == 40
    assert [row["pictures"] for row in figures["ranked_sampling"]["rows"]] == [40, 20, 20]
    assert figures["memorisation"]["samples"] == 40
    assert sum(row["images"] for row in figures["classification"]["reliability"]["bins"]) == 40
    assert {test["size"]: set(test["atypical"]) for test in figures["out_of_distribution"]["typicality_tests"]}[10] == {
        "held out",
        *(row["name"] for row in figures["out_of_distribution"]["sets"]),
    }
    assert all(row["auroc"]["reference ratio"]["area"] == 0.5 for row in figures["out_of_distribution"]["sets"])
    ratio = figures["memorisation"]["ratio_membership"]
    assert (ratio["train"], ratio["held_out"], ratio["area"]["area"]) == (0, 0, 0.5)
    maps = figures["likelihood_ratios"]["rows"]
    assert Counter(row["kind"] for row in maps) == {"classes": 12, "training": 12, "held out": 12}
    assert {row["bits"] for row in maps if row["kind"] != "classes"} == {0.0}
    # The first class is the more probable one, and the map has every token of the image.
    assert all(row["bits"] > 0 and np.shape(row["map"]) == (4, 4) for row in maps if row["kind"] == "classes")
    report = (run / "out" / "report.md").read_text()
    for picture in (
        "classification",
        "out_of_distribution",
        "filtering",
        "ranked_sampling",
        "memorisation",
        "likelihood_ratios",
    ):
        assert f"({picture}.png)" in report and (run / "out" / f"{picture}.png").stat().st_size > 1000
    # The tables that are printed are those of the report.
    assert all(line in report for line in capsys.readouterr().out.splitlines() if line.startswith("| "))


@pytest.mark.slow
def test_the_study_of_a_run_that_overflows(run, monkeypatch):
    """A third of all log-likelihoods, and of the latents, are not finite."""

    def overflows(*given, **named):
        found = log_probs(*given, **named)
        found[:, ::3] = np.nan
        return found

    def lost(*given):
        found = np.array(latents(*given))
        found[::3] = np.inf
        return found

    log_probs, latents = study.log_probs, study._z
    monkeypatch.setattr(study, "log_probs", overflows)
    monkeypatch.setattr(study, "_z", lost)
    options = ["--num", "40", "--draws", "1", "--candidates", "4", "--keep", "2", "--json", str(run / "o.json")]
    assert main(["study", "--workdir", str(run / "run"), "--out", str(run / "overflowing"), *options]) == 0
    figures = json.loads((run / "o.json").read_text())
    assert [row["not_finite"] for row in figures["out_of_distribution"]["sets"]] == [14] * 7
    assert figures["out_of_distribution"]["held_out_not_finite"] == 14
    assert figures["memorisation"]["membership"]["not_finite"] == 28
    assert figures["memorisation"]["latents"]["not_finite"] >= 28


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "out"], "contains files"),
        (["--out", "new", "--keep", "9", "--candidates", "4"], "--keep must be at most --candidates 4, got 9"),
        (["--out", "new", "--mislabelled", "0.9", "--damaged", "0.2"], "sum to at most 1"),
        (["--out", "new", "--workdir", "nowhere"], "contains no training run"),
        (
            ["--out", "new", "--num", "5"],
            "--num must include a training image of every class, got 5 and none of",
        ),
        (["--out", "new", "--reference", "nowhere"], "contains no training run"),
        (["--out", "new", "--reference", "smaller"], "--reference must be a run on images of the size"),
    ],
)
def test_the_study_refuses(run, options, sentence, capsys, monkeypatch):
    monkeypatch.chdir(run)
    (run / "out").mkdir(exist_ok=True)
    (run / "out" / "kept").touch()
    if not (run / "smaller").exists():
        flow = FlowConfig(
            channels=1, image_size=4, patch_size=2, width=16, num_blocks=2, layers_per_block=1, head_dim=8
        )
        write_run(run / "smaller", flow, DataConfig(), {4: params_of(random_flow(flow))})
    assert main(["study", "--workdir", "run", *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not (run / "new").exists()
