"""How a run handles bad checkpoints, full disks and bad gradients, and what it reports."""

import dataclasses
import errno
import json
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TrainConfig, to_json
from starflow_jax.evaluation.likelihood.held_out import held_out_score
from starflow_jax.training import Checkpoints, Snapshot, abstract_state, load_run, train
from starflow_jax.training.checkpoints.manager import SaveFailed
from starflow_jax.training.checkpoints.workdir import in_use
from starflow_jax.training.loop.metrics import read_metrics
from starflow_jax.training.loop.profile import Profiler, Window
from starflow_jax.training.loop.progress import line
from starflow_jax.training.loop.skipped_updates import Skips
from starflow_jax.training.loop.speed import Rate, Speed, utilisation

CONFIG = ExperimentConfig(
    name="care",
    flow=FlowConfig(
        family="tarflow",
        channels=1,
        image_size=8,
        patch_size=4,
        width=16,
        num_blocks=1,
        layers_per_block=1,
        head_dim=16,
    ),
    data=DataConfig(),
    train=TrainConfig(
        steps=12, batch_size=4, lr=1e-2, grad_clip=1.0, steps_per_call=4, log_every=4, checkpoint_every=2, keep=10
    ),
)


def with_train(**fields):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **fields))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(CONFIG, workdir, progress=False)
    return workdir


@pytest.fixture
def stopped(finished, tmp_path):
    """The run as it was at update 8."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for step in (10, 12):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    return workdir


def assert_same_end(workdir, other):
    for x, y in zip(*(jax.tree.leaves(load_run(folder)[2]) for folder in (workdir, other)), strict=True):
        np.testing.assert_array_equal(x, y)


def config_file(folder, config):
    """An experiment file of a configuration."""
    path = folder / "experiment.py"
    path.write_text(f"import json\n\n\ndef get_config():\n    return json.loads({to_json(config)!r})\n")
    return path


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_latest_good_passes_over_bad_ones(stopped, finished, capfd):
    folder = stopped / "checkpoints"
    shutil.rmtree(folder / "8" / "opt_state")
    loader = folder / "6" / "loader" / "metadata"
    loader.write_text(loader.read_text().replace("6", "7"))  # a position in the data that was never saved
    (folder / "4.damaged").mkdir()
    shutil.rmtree(folder / "4" / "rest" / "d")
    (folder / "9").write_text("not a folder")
    before = names(stopped)
    with pytest.raises(ValueError, match=r"checkpoints/9 is a file; .* --resume=latest-good resumes"):
        train(CONFIG, stopped, progress=False)
    assert names(stopped) == before
    train(CONFIG, stopped, progress=False, resume="latest-good")
    assert names(stopped) == sorted(
        ["10", "12", "2", "4", "4.damaged", "4.damaged+", "6", "6.damaged", "8", "8.damaged", "9.damaged"]
    )
    output = capfd.readouterr().err.splitlines()
    assert [f"checkpoints/{step} " in text for step, text in zip((9, 8, 6, 4), output, strict=True)] == [True] * 4
    assert all("skipped, and renamed to" in text for text in output)
    assert_same_end(stopped, finished)


def test_latest_good_needs_a_good_one(stopped):
    for path in (stopped / "checkpoints").iterdir():
        shutil.rmtree(path / "digests")
    before = names(stopped)
    with pytest.raises(
        ValueError,
        match=r"contains no intact checkpoint; the newest: checkpoint .*/8 is not a "
        r"starflow checkpoint",
    ):
        train(CONFIG, stopped, progress=False, resume="latest-good")
    assert names(stopped) == before


def test_a_checkpoint_of_another_run_is_no_good(stopped, finished):
    """Copied into the folder from a run of another configuration, it is skipped."""
    path = stopped / "checkpoints" / "8"
    other = dataclasses.replace(CONFIG, seed=5)
    with Checkpoints(stopped, CONFIG) as own, Checkpoints(stopped.parent / "other", other, write=True) as checkpoints:
        checkpoints.save(*own.restore(abstract_state(CONFIG), 8))
    shutil.rmtree(path)
    shutil.copytree(stopped.parent / "other" / "checkpoints" / "8", path)
    with pytest.raises(ValueError, match=r"8 is of another run: config\.seed is 5 in the checkpoint and 0 in this run"):
        train(CONFIG, stopped, progress=False)
    train(CONFIG, stopped, progress=False, resume="latest-good")
    assert_same_end(stopped, finished)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("handler", "method"),
    [(ocp.JsonCheckpointHandler, "async_save"), (ocp.StandardCheckpointHandler, "finalize")],
    ids=["at once", "in the background"],
)
def test_a_full_disk_loses_nothing(stopped, finished, monkeypatch, handler, method):
    """Old steps are retained, even if only one is to be kept."""
    before = names(stopped)
    with monkeypatch.context() as patch:
        patch.setattr(handler, method, full_disk)
        with pytest.raises(SaveFailed, match=r"checkpoints/10 could not be written \(no space left on the disk\)"):
            train(with_train(keep=1), stopped, progress=False)
    assert names(stopped) == before
    train(CONFIG, stopped, progress=False)
    assert_same_end(stopped, finished)


def exploding(config):
    """Every gradient is larger than allowed, from the first update on."""
    fields = {"grad_clip": 1e-9, "skip_after": 4, "max_skipped": 5, "log_every": 2, "steps_per_call": 2}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fields))


def test_too_many_skipped_updates_stop_a_run(tmp_path, capsys):
    config = exploding(with_train(steps=14))
    argv = ["train", "--config", str(config_file(tmp_path, config)), "--workdir", str(tmp_path / "run"), "--quiet"]
    figures = tmp_path / "figures.json"
    assert main([*argv, "--json", str(figures)]) == 2
    assert "stopped at step 10: 6 updates in a row were skipped (--max-skipped 5)" in capsys.readouterr().err
    report = json.loads(figures.read_text())
    assert (report["step"], report["skipped_updates"], report["longest_skipped_in_a_row"]) == (10, 6, 6)
    # Skipped updates change nothing: the parameters are those of the last good one.
    with Checkpoints(tmp_path / "run", config) as checkpoints:
        last, good = (checkpoints.restore(abstract_state(config), step)[0] for step in (10, 4))
    for x, y in zip(jax.tree.leaves(last.params), jax.tree.leaves(good.params), strict=True):
        np.testing.assert_array_equal(x, y)
    assert [row["skipped_updates"] for row in read_metrics(tmp_path / "run" / "metrics.csv")] == [0, 0, 2, 4, 6]
    assert main([*argv, "--max-skipped", "0", "--config.train.steps=14"]) == 0
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["skipped_updates"] == 10


def test_skips_in_a_row_are_counted_over_calls():
    skips = Skips(total=10)
    for flags in ([0, 1, 1, np.nan], [1, 0, 1, 1]):
        skips.count([{"skipped": np.asarray(flags)}])
    assert (skips.total, skips.in_a_row, skips.longest) == (15, 2, 3)


@pytest.mark.slow
def test_held_out_data_and_a_trace_while_training(tmp_path, capfd, monkeypatch):
    """Training records the score that `starflow evaluate` reports; wandb gets the same rows."""
    rows = []
    wandb = types.ModuleType("wandb")

    class Run:
        def log(self, values, step):
            rows.append((step, values))

        def finish(self):
            rows.append("finished")

    wandb.init = lambda **options: rows.append(options) or Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = with_train(
        steps=9, evaluate_every=6, sample_every=100, keep=1, keep_best=1, best_metric="held_out_bits_per_dim"
    )
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, draws=1, batch_size=360))
    argv = ["train", "--config", str(config_file(tmp_path, config)), "--workdir", str(tmp_path / "run")]
    assert main([*argv, "--profile", "4:5", "--wandb", "flows"]) == 0
    captured = capfd.readouterr()
    lines = [text for text in captured.err.splitlines() if text.startswith("care: step ")]
    assert [text.split()[2] for text in lines] == ["4/9", "6/9", "8/9", "9/9"]
    assert "loss" in lines[0] and "bits/dim" in lines[0] and "skipped 0" in lines[0] and "held out" in lines[1]
    assert [row[0] for row in rows[1:-1]] == [4, 6, 8, 9] and rows[-1] == "finished"
    assert rows[0]["project"] == "flows" and rows[0]["id"] == (tmp_path / "run" / "wandb_id.txt").read_text()

    table = read_metrics(tmp_path / "run" / "metrics.csv")
    held_out = {row["step"]: row["held_out_bits_per_dim"] for row in table if "held_out_bits_per_dim" in row}
    assert list(held_out) == [6, 9]
    scores = tmp_path / "scores.json"
    assert main(["evaluate", "--workdir", str(tmp_path / "run"), "--json", str(scores)]) == 0
    assert json.loads(scores.read_text())["bits_per_dim"]["mean"] == pytest.approx(held_out[9], rel=1e-6)
    assert names(tmp_path / "run") == [f"{step:.0f}" for step in sorted({min(held_out, key=held_out.get), 9})]

    (trace,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


@pytest.mark.slow
def test_held_out_clips_are_scored_as_starflow_score_does():
    from starflow_jax.core.config import load_config

    tiny = load_config("experiments/moving_digits.py:tiny", ["evaluate.held_out=2", "evaluate.draws=1"])
    from starflow_jax.evaluation.likelihood.video_scores import mean_per_clip, score_clips, source_clips
    from starflow_jax.flows.parameters import initialise
    from starflow_jax.training import open_source

    definition, params = initialise(tiny.flow, jax.random.key(0))
    report = held_out_score(tiny)(Snapshot(tiny, None, None, 1, definition, params))
    clips = source_clips(open_source(tiny.data, "test", flow=tiny.flow), tiny, 2)
    found = score_clips(params, tiny, clips, jax.random.key(0), draws=1)
    assert report["held_out_bits_per_dim"] == pytest.approx(mean_per_clip(found)[0], rel=1e-6)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--profile", "5"], "--profile must be FIRST:LAST"),
        (["--profile", "0:3"], "--profile must be FIRST:LAST"),
        (["--profile", "3:99"], "--profile must end at train.steps=12, got 3:99"),
        (["--wandb", "flows"], "Weights & Biases is not installed"),
        (["--resume", "newest"], "--resume must be one of"),
        (["--grace", "0"], "--grace must be an integer >= 1"),
        (["--config.train.keep_best=1"], "keep_best and best_metric must be set together"),
        (["--config.train.best_metric=held_out_bits_per_dim", "--config.train.keep_best=1"], "needs evaluate_every"),
        (["--config.train.max_skipped=-1"], "max_skipped must be an integer >= 0"),
    ],
)
def test_bad_options_are_one_sentence(option, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    argv = ["train", "--config", str(config_file(tmp_path, CONFIG)), "--workdir", str(tmp_path / "run")]
    assert main([*argv, *option]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_has_one_run_at_a_time(stopped, capsys):
    argv = ["info", "--workdir", str(stopped)]
    assert main(argv) == 0 and "\nstopped: step " in capsys.readouterr().out
    with in_use(stopped):
        with pytest.raises(ValueError, match="is in use by another process, which trains in it"):
            train(CONFIG, stopped, progress=False)
        assert main(argv) == 0 and "\nrunning: step " in capsys.readouterr().out


def test_info_tells_where_a_run_stands(stopped, capsys):
    folder = stopped / "checkpoints"
    (folder / "10.orbax-checkpoint-tmp").mkdir()
    shutil.rmtree(folder / "6" / "opt_state")
    (folder / "4" / "digests" / "metadata").write_text("{")
    (stopped / "config.json").write_text(to_json(with_train(log_every=3)))
    figures = stopped.parent / "info.json"
    assert main(["info", "--workdir", str(stopped), "--json", str(figures)]) == 0
    out = capsys.readouterr().out
    assert "care: tarflow, " in out and "newest complete checkpoint 8" in out and "best bits_per_dim" in out
    report = json.loads(figures.read_text())
    assert (report["state"], report["step"], report["steps"]) == ("stopped", 8, 12)
    entries = {entry["name"]: entry for entry in report["checkpoints"]}
    assert list(entries) == ["2", "4", "6", "8", "10.orbax-checkpoint-tmp"]
    assert entries["8"]["problem"] is None and entries["8"]["batches"] == 8 and entries["8"]["bytes"] > 10_000
    assert entries["8"]["differences"] == ["train.log_every 4, now 3"]
    assert entries["8"]["parts"] == ["params", "opt_state", "rest", "loader", "data", "config", "figures", "digests"]
    assert entries["6"]["problem"] == "is damaged: it has no opt_state"
    assert "digests cannot be read" in entries["4"]["problem"]
    assert "killed" in entries["10.orbax-checkpoint-tmp"]["problem"]
    assert main(["info", "--workdir", str(stopped / "checkpoints")]) == 2
    assert "contains no training run" in capsys.readouterr().err


def test_a_new_run_has_not_begun(tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(CONFIG))
    assert main(["info", "--workdir", str(tmp_path)]) == 0
    assert "not begun: step 0 of 12, no complete checkpoint" in capsys.readouterr().out


def test_a_window_of_updates_cuts_calls_at_its_ends():
    profiler, traced, step = Profiler("w", Window.parse("10:15")), [], 0
    profiler.begin = lambda: setattr(profiler, "_active", True)
    while step < 40:
        count = min(4, profiler.room(step) or 4)
        if profiler.before(step):
            profiler.begin()
        if profiler._active:
            traced += range(step + 1, step + count + 1)
        step += count
        if profiler.after(step):
            profiler._active = False
    assert traced == [10, 11, 12, 13, 14, 15]


def test_speed_leaves_out_compilation_and_counts_waiting(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    rate = Rate()

    def call(wait, compute):
        with rate.waiting_for_data():
            now[0] += wait
        now[0] += compute
        rate.made(1, 8, lambda: None)

    call(1.0, 100.0)  # compiles
    call(1.0, 3.0)
    with rate.not_counting(lambda: None):
        now[0] += 50.0
    call(2.0, 2.0)
    rate.finished()
    assert rate.row() == rate.total == Speed(16, 8.0, 3.0)
    assert (rate.total.images_per_second, rate.total.data_wait) == (2.0, 3 / 8)
    assert np.isnan(rate.row().images_per_second)  # nothing since the last row
    assert utilisation(2.0, 1e9, 1e10) == pytest.approx(0.2) and np.isnan(utilisation(2.0, 1e9, None))


def test_a_line_leaves_out_what_is_not_known():
    values = {"loss": 1.0, "mfu": 0.41, "data_wait": 0.002, "images_per_second": float("nan"), "skipped_updates": 3}
    assert line("run", 5, 9, values) == "run: step 5/9  loss 1.0000  MFU 41.0 %  data wait 0.2 %  skipped 3"
    assert line("run", 5, 9, {"loss": 1.0}, seconds_left=3723.4) == "run: step 5/9  loss 1.0000  1:02:03 left"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_a_callback_at_once(finished, tmp_path, number):
    """A callback, such as sampling, does not touch the state and may take long."""

    def draw(snapshot):
        signal.raise_signal(number)
        raise AssertionError("not reached")

    result = train(with_train(sample_every=6), tmp_path / "run", callbacks=[draw], progress=False)
    assert (result.step, result.interrupted, result.stopped_by) == (6, True, number)
    train(CONFIG, tmp_path / "run", progress=False)
    assert_same_end(tmp_path / "run", finished)


def test_a_failing_callback_does_not_cost_a_checkpoint(tmp_path):
    def fail(snapshot):
        raise RuntimeError("no such colour")

    with pytest.raises(RuntimeError, match="no such colour"):
        train(with_train(sample_every=6), tmp_path / "run", callbacks=[fail], progress=False)
    assert load_run(tmp_path / "run")[3] == 6


def test_a_run_that_cannot_stop_in_time_ends(tmp_path):
    script = (
        "import os, signal, time\nfrom starflow_jax.training.loop.signals import stop_requests\n"
        "with stop_requests(grace=0.3) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "not stopped 0.3 seconds after SIGTERM" in done.stderr
