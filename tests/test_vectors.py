"""Flows on vectors of numbers: what is read, how it is scored and sampled, and files that do not fit."""

import dataclasses
import json
import re
import types

import jax
import numpy as np
import pytest
from random_flows import random_flow

import starflow_jax as sf
from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.core.config.pixel_map_config import PixelMapConfig
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.evaluation.evaluation_requests import EvaluateRequest
from starflow_jax.evaluation.likelihood import held_out, vector_likelihood
from starflow_jax.flows.likelihood import objective
from starflow_jax.flows.order import reorder
from starflow_jax.training.checkpoints.ported import write_run

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(40, 3)).astype(np.float32) * 5 + 100
# Two numbers, standardised; one block without layers is the identity, so the density is a product of normal ones.
MAP = PixelMapConfig(kind="affine", shift=(100.0, -3.0), scale=(5.0, 0.1))
NORMAL = FlowConfig(
    family="tarflow",
    channels=1,
    image_size=(2, 1),
    width=8,
    num_blocks=1,
    layers_per_block=1,
    head_dim=8,
    pixel_map=MAP,
)


def source(path, split="train"):
    return open_source(DataConfig(source="vectors", path=str(path), noise="none"), split)


def values(found) -> np.ndarray:
    return np.stack([found[index]["image"] for index in range(len(found))])


def test_formats_give_the_same_vectors(tmp_path):
    labels = RNG.integers(3, size=40)
    np.savez(tmp_path / "t.npz", x=TABLE, label=labels)
    np.save(tmp_path / "t.npy", TABLE)
    rows = [",".join(map(repr, map(float, row))) + f",{label}" for row, label in zip(TABLE, labels, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["height,width,depth,label", *rows]))
    for suffix in ("npz", "npy", "csv"):
        train, test = (source(tmp_path / f"t.{suffix}", split) for split in ("train", "test"))
        assert (len(train), len(test), train.levels) == (36, 4, 0)
        np.testing.assert_array_equal(values(test)[..., 0, 0], TABLE[9::10])
        expected = np.delete(labels, slice(9, None, 10)) if suffix != "npy" else np.zeros(36)
        np.testing.assert_array_equal([train[i]["label"] for i in range(36)], expected)


def test_a_byte_order_mark_hides_no_row(tmp_path):
    (tmp_path / "t.csv").write_text("".join(f"{row},1\n" for row in range(20)), encoding="utf-8-sig")
    np.testing.assert_array_equal(values(source(tmp_path / "t.csv"))[:3, 0, 0, 0], [0, 1, 2])
    (tmp_path / "t.csv").write_text("label,x\n" + "2,7\n" * 20, encoding="utf-8-sig")
    assert source(tmp_path / "t.csv").num_classes == 3


def test_the_standardisation_does_not_see_padding(tmp_path):
    lengths = np.tile([1, 2, 3], 20)
    x = RNG.normal(3.0, 2.0, size=(60, 4, 1)).astype(np.float32)
    real = np.arange(4) < lengths[:, None]
    found = []
    for padding in (0.0, 1e6):
        np.savez(tmp_path / "t.npz", x=np.where(real[..., None], x, padding), length=lengths)
        overrides = [f"data.path={tmp_path / 't.npz'}"]
        found.append(sf.load_config("experiments/own_vectors.py", overrides).flow.pixel_map)
    assert found[0] == found[1]
    train = np.arange(60) % 10 != 9
    first, third = x[train, 0], x[train & real[:, 2], 2]
    np.testing.assert_allclose(found[0].shift, [first.mean(), found[0].shift[1], third.mean(), 0.0], rtol=1e-5)
    np.testing.assert_allclose(found[0].scale, [first.std(), found[0].scale[1], third.std(), 1.0], rtol=1e-5)


def test_splits_in_a_file_and_in_a_folder(tmp_path):
    np.savez(tmp_path / "t.npz", x_train=TABLE[:30, None], x_test=TABLE[30:, None])
    assert values(source(tmp_path / "t.npz", "test")).shape == (10, 1, 1, 3)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "train.npy", TABLE)
    (folder / "val.csv").write_text("1,2,3\n4,5,6\n")
    assert (len(source(folder)), len(source(folder, "test"))) == (40, 2)


def test_files_that_do_not_fit(tmp_path):
    def write(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    (tmp_path / "ragged.csv").write_text("1,2\n3\n")
    (tmp_path / "words.csv").write_text("a,b\n1,two\n")
    np.save(tmp_path / "objects.npy", np.array([{}, 1], object), allow_pickle=True)
    with_nan = TABLE.copy()
    with_nan[4, 1] = np.nan
    for path, message in (
        (tmp_path / "ragged.csv", "row 2 has 1 fields, and the first one 2"),
        (tmp_path / "words.csv", "cannot be read: could not convert string to float"),
        (tmp_path / "objects.npy", "cannot be read: Object arrays cannot be loaded"),
        (tmp_path / "t.txt", "must contain one of train.npz, train.npy, train.csv"),
        (write("a.npz", y=TABLE), "must contain `x`, numbers .* got the arrays y"),
        (write("b.npz", x=TABLE.astype(str)), "must contain x as numbers"),
        (write("c.npz", x=with_nan), "must be finite, got NaN or an infinity in row 4"),
        (write("d.npz", x=TABLE, label=np.full(40, 0.5)), "must contain label as integers"),
        (write("e.npz", x=TABLE, label=np.full(40, -1)), "must contain labels from 0 to"),
        (write("g.npz", x=TABLE, length=np.full(40, 4)), "lengths of .* must be 1 to 3, got 4 to 4"),
        (write("f.npz", x_train=TABLE), "must contain x_test, got the arrays x_train"),
    ):
        with pytest.raises(ValueError, match=message):
            source(path, "test" if path.name == "f.npz" else "train")


def test_configurations_that_do_not_fit():
    flow = FlowConfig(channels=1, image_size=(2, 1), width=8, num_blocks=1, layers_per_block=1, head_dim=8)
    train = TrainConfig(steps=1, batch_size=1, lr=1.0)
    for make, message in (
        (lambda: DataConfig(source="two_moons"), "noise must be 'none' or 'gaussian' for vectors"),
        (lambda: DataConfig(source="digits", noise="none"), "noise must be .* 'uniform' or 'gaussian' for pictures"),
        (lambda: PixelMapConfig(kind="affine"), "pixel_map.shift and pixel_map.scale must have a number for each"),
        (lambda: PixelMapConfig(kind="affine", shift=(0.0,), scale=(0.0,)), "pixel_map.scale must be"),
        (
            lambda: FlowConfig(**vars(NORMAL) | {"image_size": (3, 1)}),
            "pixel_map.shift must have 3 numbers, one for each of an example, got 2",
        ),
        (lambda: dataclasses.replace(RAGGED, orders=((), ())), "orders must have num_blocks=3 entries, got 2"),
        (
            lambda: dataclasses.replace(RAGGED, orders=((0, 1, 2, 2), (), ())),
            r"orders of block 0 must be \(\) or a permutation of 0 to 3, got \(0, 1, 2, 2\)",
        ),
        (
            lambda: ExperimentConfig("e", NORMAL, DataConfig(source="digits"), train),
            "flow.pixel_map needs vectors with data.noise 'none'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    ExperimentConfig("e", flow, DataConfig(source="two_moons", noise="none"), train)


# Vectors of one to four tokens of two numbers; block 0 has a given order, and block 1 reads backwards.
RAGGED = FlowConfig(
    family="tarflow",
    channels=2,
    image_size=(4, 1),
    width=8,
    num_blocks=3,
    layers_per_block=1,
    head_dim=8,
    orders=((2, 0, 3, 1), (), (1, 3, 2, 0)),
)
LENGTHS = np.array([1, 2, 3, 4, 2, 2], np.int32)


@pytest.fixture(scope="module")
def ragged():
    """A flow on vectors with padding, and samples of every length with their densities."""
    made = sf.distribution(random_flow(RAGGED), shape=(4, 2))
    return made, *(np.asarray(part) for part in made.sample_and_log_prob(jax.random.key(0), (), lengths=LENGTHS))


def test_padding_is_zero_in_samples_and_has_no_effect_in_data(ragged):
    made, x, log_q = ragged
    real = np.arange(4) < LENGTHS[:, None]
    assert not x[~real].any() and x[real].all()
    for padding in (0.0, 7.0, np.nan):
        padded = np.where(real[..., None], x, padding).astype(np.float32)
        np.testing.assert_allclose(made.log_prob(padded, lengths=LENGTHS), log_q, rtol=1e-5)


def test_lengths_out_of_range_are_refused_or_give_nan(ragged):
    made, x, log_q = ragged
    for wrong, seen in ((0, "0"), ([5, 2, -1, 4, 4, 4], "5, -1")):
        with pytest.raises(ValueError, match=f"lengths must be 1 to 4, got {seen}$"):
            made.log_prob(x, lengths=np.array(wrong))
        with pytest.raises(ValueError, match=f"lengths must be 1 to 4, got {seen}$"):
            made.sample(jax.random.key(0), (6,), lengths=np.array(wrong))
    with pytest.raises(ValueError, match="lengths must be integers, got float32"):
        made.log_prob(x, lengths=LENGTHS.astype(np.float32))
    traced = jax.jit(lambda lengths: made.log_prob(x, lengths=lengths))(np.array([1, 0, 3, 5, -1, 2], np.int32))
    np.testing.assert_allclose(traced, np.where([1, 0, 1, 0, 0, 1], log_q, np.nan), rtol=1e-5)


def test_vectors_without_padding_are_those_of_full_length(ragged):
    made, x, log_q = ragged
    np.testing.assert_allclose(made.log_prob(x, lengths=np.full(6, 4, np.int32))[3], log_q[3], rtol=1e-5)
    np.testing.assert_allclose(made.log_prob(x)[3], log_q[3], rtol=1e-5)


def test_log_determinant_of_the_tokens_before_the_padding(ragged):
    made, x, _ = ragged
    step, lengths, columns = 1e-2, np.full(6, 2, np.int32), []
    for number in range(4):  # two tokens of two numbers
        moved = np.tile(x[1], (6, 1, 1))
        moved[0].flat[number] += step
        moved[1].flat[number] -= step
        z, log_det = made.inverse_and_log_det(moved, lengths=lengths)
        columns.append((np.asarray(z[0] - z[1]) / (2 * step))[:2].reshape(-1))
    np.testing.assert_allclose(log_det[2], np.linalg.slogdet(np.stack(columns))[1], atol=2e-3)


def test_the_objective_counts_the_tokens_before_the_padding(ragged):
    made, x, log_q = ragged

    @jax.jit
    def losses(x):
        out = made.flow.forward(x[:, :, None], lengths=LENGTHS)
        return objective(out).loss, out.logdet

    constant = 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(losses(x)[0], np.mean(-log_q / (2 * LENGTHS) - constant), rtol=1e-5)


def test_orders_are_raster_indices_and_keep_padding_last():
    tokens, order = np.arange(4)[None, :, None], (2, 0, 3, 1)
    assert reorder(tokens, order, 4)[0, :, 0].tolist() == list(order)
    np.testing.assert_array_equal(reorder(reorder(tokens, order, 4), order, 4, restore=True), tokens)
    for name, expected in ((order, [2, 0, 1, 3]), ("flip", [2, 1, 0, 3]), ("identity", [0, 1, 2, 3])):
        ordered = reorder(tokens, name, 4, np.array([3]))
        assert ordered[0, :, 0].tolist() == expected
        np.testing.assert_array_equal(reorder(ordered, name, 4, np.array([3]), restore=True), tokens)


def test_scores_of_vectors_count_all_classes_and_real_numbers(tmp_path, monkeypatch):
    lengths, labels = np.resize(LENGTHS, 60), np.arange(60) % 3
    labels[9::10] = np.arange(6) % 2  # class 2 is not among the held-out vectors
    np.savez(tmp_path / "t.npz", x=np.ones((60, 4, 2)), length=lengths, label=labels)
    data = DataConfig(source="vectors", path=str(tmp_path / "t.npz"), noise="none")
    flow = dataclasses.replace(RAGGED, num_classes=3)
    config = ExperimentConfig("e", flow, data, TrainConfig(steps=1, batch_size=1, lr=1.0))

    def log_likelihoods(params, config, x, cond, **options):
        return np.where(cond == 2, 0.0, -np.arange(1.0, len(x) + 1))

    for module in (held_out, vector_likelihood):
        monkeypatch.setattr(module, "log_likelihoods", log_likelihoods)
    monkeypatch.setattr(vector_likelihood, "load_run", lambda *_, **__: (config, None, None, 0))
    scores = vector_likelihood.evaluate_vectors(EvaluateRequest(tmp_path))
    assert scores.accuracy == 0.0 and scores.log_likelihood == -3.5
    expected = 21 / (2 * lengths[9::10].sum() * np.log(2))
    np.testing.assert_allclose(scores.bits_per_dim, expected, rtol=1e-6)
    found = held_out.held_out_score(config)(types.SimpleNamespace(config=config, params=None))
    np.testing.assert_allclose(found["held_out_bits_per_dim"], expected, rtol=1e-6)


@pytest.mark.slow
def test_jacobi_solves_vectors_with_padding(ragged):
    made, x, log_q = ragged
    fast = sf.distribution(made.flow, shape=(4, 2), solver=sf.Jacobi.whole(tolerance=1e-12))
    found, log_p = fast.sample_and_log_prob(jax.random.key(0), (), lengths=LENGTHS)
    np.testing.assert_allclose(found, x, atol=1e-5)
    np.testing.assert_allclose(log_p, log_q, rtol=1e-5)


@pytest.mark.slow
def test_training_on_vectors_with_padding(tmp_path):
    """The commands on a file with lengths: the score is that of the distribution."""
    x = RNG.normal(size=(60, 4, 2)).astype(np.float32)
    lengths = RNG.integers(1, 5, size=60)
    np.savez(tmp_path / "t.npz", x=x, length=lengths)
    overrides = [f"--config.data.path={tmp_path / 't.npz'}", "--config.train.evaluate_every=5"]
    run = str(tmp_path / "run")
    train = ["train", "--config", "experiments/own_vectors.py:tiny", *overrides, "--workdir", run, "--quiet"]
    assert main(train) == 0
    assert main(["evaluate", "--workdir", run, "--json", str(tmp_path / "e.json")]) == 0
    found, made = json.loads((tmp_path / "e.json").read_text()), sf.distribution(run)
    log_p = made.log_prob(x[9::10], lengths=lengths[9::10].astype(np.int32))
    np.testing.assert_allclose(found["log_likelihood"], np.mean(log_p), rtol=1e-5)
    assert found["dims"] == 2 * lengths[9::10].mean()


def test_a_new_flow_has_the_density_of_its_standardised_vectors():
    """A new block is the identity, so the density is the product of the normal densities of the map."""
    made = sf.distribution(sf.Flow(NORMAL, jax.random.key(0)), shape=(2,))
    x, log_q = made.sample_and_log_prob(jax.random.key(1), (500,))
    standard = (np.asarray(x, np.float64) - MAP.shift) / MAP.scale
    expected = -0.5 * (standard**2).sum(axis=1) - np.log(2 * np.pi) - np.log(MAP.scale).sum()
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)
    np.testing.assert_allclose(made.log_prob(x), expected, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(x).mean(axis=0), MAP.shift, atol=0.8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the experiment's tiny variant with its initial parameters, since training takes longer than the rest."""
    folder = tmp_path_factory.mktemp("moons") / "run"
    write_run(folder, sf.load_config("experiments/two_moons.py:tiny"), {}, set())
    return folder


def test_evaluate_reports_the_mean_log_likelihood(run, tmp_path, capsys):
    assert main(["evaluate", "--workdir", str(run), "--json", str(tmp_path / "e.json")]) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "e.json").read_text())
    assert found["vectors"] == 2000 and found["dims"] == 2 and found["accuracy"] is None
    made = sf.distribution(run)
    assert made.shape == (2,)
    held_out = values(open_source(made_config(run).data, "test")).reshape(-1, 2)
    np.testing.assert_allclose(np.mean(made.log_prob(held_out)), found["log_likelihood"], rtol=1e-4)
    assert f"{found['log_likelihood']:.4f}" in printed


def made_config(run):
    return sf.load_run(run)[0]


def test_sample_writes_numbers_and_a_density(run, tmp_path, capsys):
    command = ["sample", "--workdir", str(run), "--num", "16", "--seed", "3", "--out"]
    for suffix in ("npy", "csv", "png"):
        assert main([*command, str(tmp_path / f"x.{suffix}")]) == 0
    x = np.load(tmp_path / "x.npy")
    expected = sf.distribution(run).sample(jax.random.key(3), (16,))
    np.testing.assert_allclose(x, expected, atol=1e-5)
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "x.csv", delimiter=",", skiprows=1, dtype=np.float32), x)
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main([*command, str(tmp_path / "x.mp4")]) == 2
    assert re.search(r"--out must end in .npy, .npz, .csv or .png for a run on vectors", capsys.readouterr().err)
