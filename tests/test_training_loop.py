"""A run can be stopped anywhere, and resuming it gives exactly the parameters of an unstopped run."""

import dataclasses
import json
import signal
import threading

import jax
import numpy as np
import pytest

from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig
from starflow_jax.data import ArraySource
from starflow_jax.training import init_state, load_run, open_source, plot_curves, train
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.workdir import claim_workdir
from starflow_jax.training.loop.metrics import FIELDS, MetricsWriter, average, read_metrics
from starflow_jax.training.loop.records import objective_bits_per_dim
from starflow_jax.training.loop.signals import stop_requests

CONFIG = ExperimentConfig(
    name="test",
    flow=FlowConfig(
        family="tarflow",
        channels=1,
        image_size=8,
        patch_size=4,
        width=16,
        num_blocks=2,
        layers_per_block=1,
        head_dim=16,
        num_classes=10,
        dropout=0.1,
    ),
    data=DataConfig(label_drop=0.1),
    train=TrainConfig(
        steps=8,
        batch_size=4,
        lr=1e-2,
        warmup=2,
        ema=0.9,
        grad_clip=1.0,
        steps_per_call=3,
        log_every=2,
        checkpoint_every=4,
        sample_every=5,
    ),
)


def run(workdir, *callbacks, config=CONFIG, **options):
    return train(config, workdir, callbacks=callbacks, progress=False, **options)


def rows(workdir):
    return read_metrics(workdir / "metrics.csv")


def assert_same_end(workdir, other):
    for ema in (True, False):
        (_, _, a, step), (_, _, b, _) = load_run(workdir, ema=ema), load_run(other, ema=ema)
        assert step == 8
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)
    a, b = rows(workdir)[-1], rows(other)[-1]
    assert all(a[name] == b[name] for name in ("step", "loss", "grad_norm"))


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unstopped")
    seen = []

    def callback(snapshot):
        seen.append((snapshot.step, snapshot.source.name, snapshot.config.name))
        return {"held_out_bits_per_dim": 4.0, "temperature": 1.0}

    result = run(workdir, callback)
    assert seen == [(5, "digits-train", "test"), (8, "digits-train", "test")]
    assert (result.step, result.interrupted) == (8, False)
    return workdir


def test_a_run_leaves_its_records(unstopped):
    table = rows(unstopped)
    assert [row["step"] for row in table] == [2, 4, 5, 6, 8]
    assert [row["step"] for row in table if "held_out_bits_per_dim" in row] == [5, 8]
    assert all(set(row) <= set(FIELDS) for row in table)
    last = table[-1]
    bits = objective_bits_per_dim(last["loss_z"] + last["loss_logdet"], 17)
    assert last["bits_per_dim"] == pytest.approx(bits, rel=1e-5)
    assert last["learning_rate"] == pytest.approx(CONFIG.train.min_lr)
    assert sorted(path.name for path in unstopped.iterdir()) == [
        "checkpoints",
        "config.json",
        "curves.png",
        "events",
        "goodput.json",
        "metrics.csv",
    ]
    assert (unstopped / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((unstopped / "events").iterdir())


def test_a_finished_run_has_nothing_to_do(unstopped):
    result = run(unstopped)
    assert (result.step, result.interrupted, dict(result.metrics)) == (8, False, {})


@pytest.mark.parametrize("how", ["signal", "exception"])
def test_ctrl_c_leaves_a_checkpoint_that_resumes_exactly(unstopped, tmp_path, how):
    handler = signal.getsignal(signal.SIGINT)

    def ctrl_c(snapshot):
        if how == "exception":
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    result = run(tmp_path, ctrl_c)
    assert (result.step, result.interrupted) == (5, True)
    assert load_run(tmp_path)[3] == 5
    assert signal.getsignal(signal.SIGINT) is handler
    result = run(tmp_path)
    assert (result.step, result.interrupted) == (8, False)
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 5, 6, 8]
    assert_same_end(tmp_path, unstopped)


def test_a_crash_goes_on_from_the_last_checkpoint(unstopped, tmp_path):
    def crash(snapshot):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, crash)
    with MetricsWriter(tmp_path, step=99) as writer:
        writer.write(5, {"loss": 123.0})  # a row after the checkpoint
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("6,0.1")  # and a truncated one
    run(tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 6, 8]
    assert_same_end(tmp_path, unstopped)


def test_another_configuration_is_refused_and_changes_nothing(unstopped):
    before = (unstopped / "config.json").read_text()
    with pytest.raises(ValueError, match=r"another configuration: config\.seed is 0 in the folder and 1 in this call"):
        run(unstopped, config=dataclasses.replace(CONFIG, seed=1))
    assert (unstopped / "config.json").read_text() == before


@pytest.mark.parametrize(("name", "kind"), [("checkpoints", "folder"), ("events", "folder"), ("metrics.csv", "file")])
def test_a_folder_that_cannot_hold_a_run_is_refused(tmp_path, name, kind):
    claim_workdir(tmp_path, CONFIG)
    if kind == "folder":
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"cannot contain a run: {name} exists and is not a {kind}"):
        run(tmp_path)


@pytest.mark.parametrize("place", [{}, [], 5, {"next_index": "x"}, {"next_index": 1.5}, {"next_index": 10**30}])
def test_a_wrong_place_in_the_data_is_a_damaged_checkpoint(tmp_path, place):
    claim_workdir(tmp_path, CONFIG)
    with Checkpoints(tmp_path, CONFIG, write=True) as checkpoints:
        checkpoints.save(init_state(CONFIG), {"next_index": 0})
    folder = tmp_path / "checkpoints" / "0" / "loader"
    (file,) = (path for path in folder.iterdir() if "next_index" in path.read_text())
    file.write_text(json.dumps(place))
    with pytest.raises(ValueError, match=r"checkpoints/0 is damaged"):
        run(tmp_path)


def test_images_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    images, labels = np.zeros((20, 4, 4, 1), np.uint8), np.zeros(20, np.int32)
    small = ArraySource("small", images, labels, levels=2, num_classes=2)
    with pytest.raises(ValueError, match=r"must fit the images of small, \[4, 4, 1\], got \[8, 8, 1\]"):
        run(tmp_path / "w", source=small)
    many = ArraySource("many", np.zeros((20, 8, 8, 1), np.uint8), labels, levels=2, num_classes=11)
    with pytest.raises(ValueError, match=r"flow\.num_classes must be at least the 11 classes of many, got 10"):
        run(tmp_path / "w", source=many)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("kernels", "what"), [("pallas", "Pallas kernels"), ("cudnn", "cuDNN")])
def test_kernels_that_are_not_there_are_refused_before_anything_is_written(kernels, what, tmp_path):
    insisting = dataclasses.replace(CONFIG, flow=dataclasses.replace(CONFIG.flow, kernels=kernels))
    with pytest.raises(
        ValueError, match=rf"flow\.kernels must be 'auto' or 'xla' on a cpu, which has no {what}, got '{kernels}'"
    ):
        run(tmp_path / "w", config=insisting)
    assert not (tmp_path / "w").exists()


def test_npz_sources(tmp_path):
    config = DataConfig(source="npz", path=str(tmp_path))
    with pytest.raises(ValueError, match=r"data file .*train\.npz does not exist"):
        open_source(config, "train")
    images = np.full((6, 8, 8, 3), 255, np.uint8)
    np.savez(tmp_path / "train.npz", image=images, label=np.arange(6))
    source = open_source(config, "train")
    assert (len(source), source.levels, source.num_classes) == (6, 256, 6)
    np.savez(tmp_path / "test.npz", image=images)
    with pytest.raises(ValueError, match=r"data file .*test\.npz must contain .*, got image uint8 .* and no label"):
        open_source(config, "test")
    np.savez(tmp_path / "test.npz", image=np.array([{}], object), label=np.arange(1))  # needs pickle
    with pytest.raises(ValueError, match=r"data file .*test\.npz cannot be read"):
        open_source(config, "test")
    (tmp_path / "test.npz").write_bytes((tmp_path / "train.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"data file .*test\.npz cannot be read"):
        open_source(config, "test")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_does_not_wait(first):
    with stop_requests() as stop:
        assert stop.agreed() == 0
        signal.raise_signal(first)
        assert stop.agreed() == first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_sigterm_may_come_again():
    with stop_requests() as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.agreed() == signal.SIGTERM


def test_outside_the_main_thread_signals_are_left_alone():
    answers = []

    def inside():
        with stop_requests() as stop:
            answers.append(stop.agreed())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert answers == [0]


def test_averages_leave_out_what_is_not_finite():
    calls = [
        {"loss": np.array([1.0, np.nan, np.nan]), "skipped": np.array([0.0, 1.0, np.nan])},
        {"loss": np.array([3.0, 2.0, np.nan]), "skipped": np.array([0.0, 0.0, np.nan])},
    ]
    assert average(calls) == {"loss": 2.0, "skipped": 0.25}
    assert np.isnan(average([{"loss": np.array([np.nan])}])["loss"])


def test_no_metrics_no_curves(tmp_path):
    assert plot_curves(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_bits_per_dim_puts_the_constants_back():
    # z = 0 everywhere, logdet 0: log-density -0.5 log(2 pi) a dimension, and cells of width 2 / 256
    expected = (0.5 * np.log(2 * np.pi) + np.log(128)) / np.log(2)
    assert objective_bits_per_dim(0.0, 256) == pytest.approx(expected)
