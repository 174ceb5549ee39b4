"""The commands from the outside: the files that they write, and their error messages."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from starflow_jax import sampling, training
from starflow_jax.cli.dispatch import COMMANDS, main
from starflow_jax.core.config import load_config
from starflow_jax.evaluation.likelihood import run_scores
from starflow_jax.evaluation.samples import sample_grids as pictures
from starflow_jax.training import Checkpoints, init_state
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, claim_workdir
from starflow_jax.training.loop.metrics import read_metrics

EXPERIMENT = """
from ml_collections import ConfigDict

def get_config(variant=""):
    classes = 0 if variant == "unconditional" else 10
    return ConfigDict({
        "name": "tiny",
        "flow": {"family": "tarflow", "channels": 1, "image_size": 8, "patch_size": 4, "width": 16, "num_blocks": 2,
                 "layers_per_block": 1, "head_dim": 8, "num_classes": classes},
        "data": {"label_drop": 0.1 if classes else 0.0},
        "train": {"steps": 8, "batch_size": 16, "lr": 1e-3, "ema": 0.9, "steps_per_call": 4, "log_every": 4,
                  "checkpoint_every": 4, "sample_every": 4},
        "sample": {"num": 10},
        "evaluate": {"draws": 2},
    })
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with an experiment file and `run`, trained: once stopped by a signal, then gone on."""
    home = tmp_path_factory.mktemp("cli")
    (home / "tiny.py").write_text(EXPERIMENT)
    (home / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    (home / "leaving.py").write_text("import sys\nsys.exit()\n")
    (home / "file").write_text("not a folder")
    (home / "foreign").mkdir()
    (home / "foreign" / "letter.txt").write_text("dear reader")
    train = ["train", "--config", str(home / "tiny.py"), "--workdir", str(home / "run"), "--quiet"]
    message = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(message):
        patch.setattr(pictures, "write_sample_grid", lambda snapshot: signal.raise_signal(signal.SIGINT))
        assert main(train) == 130
    (home / "interrupted.txt").write_text(message.getvalue())
    assert main([*train, "--json", str(home / "train.json")]) == 0
    return home


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def contents(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_training_stops_goes_on_and_leaves_its_records(home):
    figures = json.loads((home / "train.json").read_text())
    assert (figures["step"], figures["steps"], figures["interrupted"]) == (8, 8, False)
    assert [row["step"] for row in read_metrics(home / "run" / "metrics.csv")] == [4, 8]
    with Image.open(home / "run" / "samples_000008.png") as picture:
        assert picture.size == (10 * 64, 64)  # a column for each class
    assert (home / "run" / "curves.png").is_file()
    assert not list(home.rglob(".*"))


def test_an_interrupted_run_says_how_to_go_on(home):
    assert (home / "interrupted.txt").read_text().splitlines() == [
        "starflow: interrupted at step 4 of 8; a checkpoint is saved and the same command resumes from it"
    ]


def test_evaluate(here, tmp_path, capsys):
    assert main(["evaluate", "--workdir", "run", "--json", str(tmp_path / "e.json")]) == 0
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["bits_per_dim"]["images"] == 360 and figures["bits_per_dim"]["draws"] == 2
    assert 3.0 < figures["bits_per_dim"]["mean"] < 5.5 and figures["bits_per_dim"]["image_error"] > 0
    assert figures["accuracy"]["images"] == 360
    assert f"{figures['bits_per_dim']['mean']:.4f}" in capsys.readouterr().out
    assert main(["evaluate", "--workdir", "run", "--no-ema", "--json", str(tmp_path / "last.json")]) == 0
    last = json.loads((tmp_path / "last.json").read_text())
    assert last["ema"] is False and last["bits_per_dim"]["mean"] != figures["bits_per_dim"]["mean"]


def test_sample_grid_arrays_and_folder(here, tmp_path, capsys):
    options = ["sample", "--workdir", "run", "--num", "6", "--class", "7", "--guidance", "1.5", "--solver", "jacobi"]
    assert main([*options, "--out", str(tmp_path / "new" / "x.png"), "--json", str(tmp_path / "s.json")]) == 0
    with Image.open(tmp_path / "new" / "x.png") as picture:
        assert picture.size == (3 * 64, 2 * 64)
    figures = json.loads((tmp_path / "s.json").read_text())
    assert figures["converged"] and figures["evaluations"] <= 6 and figures["solver"]["name"] == "jacobi"
    assert main([*options, "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["image"].shape == (6, 8, 8, 1) and arrays["image"].dtype == np.uint8
        assert (arrays["label"] == 7).all() and np.isfinite(arrays["x"]).all()
    assert main([*options, "--scale", "2", "--out", str(tmp_path / "folder")]) == 0
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [f"{n}.png" for n in range(6)]
    assert not list(tmp_path.rglob(".*"))
    assert "did not converge" not in capsys.readouterr().err


def test_a_solver_that_gave_up_is_said(here, tmp_path, capsys):
    options = ["--solver", "jacobi", "--max-iterations", "1", "--tolerance", "0", "--out", str(tmp_path / "x.png")]
    assert main(["sample", "--workdir", "run", *options]) == 0
    assert "2 chunks did not converge" in capsys.readouterr().err


TRAIN = ["train", "--config", "tiny.py", "--workdir", "new"]
SAMPLE = ["sample", "--workdir", "run", "--out", "x.png"]
REFUSALS = {
    "no command": ([], "a command is required"),
    "unknown command": (["trian"], "did you mean train?"),
    "unknown option": (["evaluate", "--workdr", "run"], "did you mean --workdir?"),
    "stray argument": (["evaluate", "--workdir", "run", "more"], "unrecognized arguments: more"),
    "missing option": (["train", "--config", "tiny.py"], "--workdir"),
    "missing config": (["train", "--config", "none.py", "--workdir", "new"], "none.py does not exist"),
    "broken config": (["train", "--config", "broken.py", "--workdir", "new"], "ZeroDivisionError"),
    "config is a folder": (["train", "--config", "run", "--workdir", "new"], "run does not exist"),
    "unknown key": ([*TRAIN, "--config.train.lrr=1"], "did you mean lr"),
    "wrong type": ([*TRAIN, "--config.train.lr=fast"], "config.train.lr must be a number, got 'fast'"),
    "out of range": ([*TRAIN, "--config.train.lr=-1"], "lr must be a finite number >= 0, got -1.0"),
    "too many steps": (
        [*TRAIN, "--config.train.steps=100000000000000000000"],
        "steps must be an integer <= 4294967295",
    ),
    "too many digits": ([*TRAIN, f"--config.train.lr=1{'0' * 400}"], "config.train.lr must be a number that a float"),
    "leaving config": (["train", "--config", "leaving.py", "--workdir", "new"], "failed with SystemExit"),
    "not finite": ([*TRAIN, "--config.train.lr=1e999"], "lr must be a finite number"),
    "no value": ([*TRAIN, "--config.train.lr", "1"], "--config.NAME=VALUE"),
    "override elsewhere": ([*SAMPLE, "--config.train.lr=1"], "not an option of sample"),
    "images do not fit": ([*TRAIN, "--config.flow.image_size=12"], "flow.image_size"),
    "too few classes": ([*TRAIN, "--config.flow.num_classes=5"], "flow.num_classes"),
    "missing data": ([*TRAIN, "--config.data.source=npz", "--config.data.path=gone"], "train.npz does not exist"),
    "another config": (["train", "--config", "tiny.py", "--workdir", "run", "--config.train.lr=0.5"], "another config"),
    "foreign workdir": (["train", "--config", "tiny.py", "--workdir", "foreign"], "foreign is not empty"),
    "workdir is a file": (["train", "--config", "tiny.py", "--workdir", "file"], "file cannot be written"),
    "workdir in a file": (["train", "--config", "tiny.py", "--workdir", "file/run"], "--workdir must be a path, got"),
    "json in a file": ([*TRAIN, "--json", "file/x.json"], "--json must be a path, got"),
    "json is a folder": (["evaluate", "--workdir", "run", "--json", "foreign"], "--json must name a file"),
    "no run": (["evaluate", "--workdir", "foreign"], "contains no training run"),
    "missing run": (["sample", "--workdir", "gone", "--out", "x.png"], "contains no training run"),
    "no draws": (
        ["evaluate", "--workdir", "run", "--draws", "0"],
        "--draws must be an integer from 1 to 1000000, got '0'",
    ),
    "unknown split": (["evaluate", "--workdir", "run", "--split", "dev"], "--split must be one of train, test"),
    "zero samples": ([*SAMPLE, "--num", "0"], "--num must be an integer from 1 to 1000000000, got '0'"),
    "half a sample": ([*SAMPLE, "--num", "1.5"], "--num must be an integer"),
    "no such class": ([*SAMPLE, "--class", "10"], "class must be 0 to 9, got 10"),
    "huge class": ([*SAMPLE, "--class", "100000000000"], "--class must be a class number from 0 to 2147483647"),
    "huge iterations": (
        [*SAMPLE, "--solver", "jacobi", "--max-iterations", "1000000000000"],
        "--max-iterations must be an integer from 1 to 100000, got '1000000000000'",
    ),
    "out too long": (["sample", "--workdir", "run", "--out", "x" * 300 + ".png"], "--out must be a path, got"),
    "out too long at first": (["sample", "--workdir", "run", "--out", "x" * 240 + ".png"], "--out cannot be written"),
    "json too long": ([*TRAIN, "--json", f"new/{'x' * 300}/x.json"], "--json cannot be written"),
    "negative class": ([*SAMPLE, "--class", "-1"], "--class must be"),
    "negative guidance": ([*SAMPLE, "--guidance", "-1"], "--guidance must be a finite number >= 0, got '-1'"),
    "guidance nan": ([*SAMPLE, "--guidance", "nan"], "--guidance must be a finite number"),
    "guidance of none": ([*SAMPLE, "--class", "none", "--guidance", "1"], "attention_temperature"),
    "temperature inf": ([*SAMPLE, "--temperature", "inf"], "--temperature must be a finite number"),
    "no attention": ([*SAMPLE, "--attention-temperature", "0"], "must be a finite number > 0"),
    "unknown solver": ([*SAMPLE, "--solver", "newton"], "--solver must be one of auto, gs-jacobi"),
    "option of another solver": ([*SAMPLE, "--block", "8"], "--block is an option of --solver jacobi"),
    "nothing to denoise": ([*SAMPLE, "--denoise", "score"], "denoise must be 'none'"),
    "seed too large": ([*SAMPLE, "--seed", "4294967296"], "--seed must be an integer from 0 to 4294967295"),
    "other suffix": (["sample", "--workdir", "run", "--out", "x.jpg"], "--out must end in .png or .npz"),
    "out in a file": (["sample", "--workdir", "run", "--out", "file/x.png"], "--out must be a path, got"),
    "out is taken": (["sample", "--workdir", "run", "--out", "foreign"], "--out must be an empty or a new folder"),
    "out is a file": (["sample", "--workdir", "run", "--out", "file"], "--out must name a folder"),
    "foreign demo": (["demo", "--tiny", "--out", "foreign"], "foreign is not empty and contains no demo"),
    "demo in a file": (["demo", "--tiny", "--out", "file"], "must be a folder, got the file"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, here, capfd):
    argv, message = REFUSALS[name]
    before = contents(here)
    assert main(argv) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("starflow: ")
    assert message in captured.err and "Traceback" not in captured.err
    assert contents(here) == before


def damaged(run, target):
    """A copy of a run whose newest checkpoint lost the second half of the largest file of every part."""
    shutil.copytree(run, target)
    newest = max((target / CHECKPOINT_FOLDER).iterdir(), key=lambda path: int(path.name))
    for part in (path for path in newest.iterdir() if path.is_dir()):
        largest = max((path for path in part.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
    return target


@pytest.mark.parametrize("command", ["train", "evaluate", "sample"])
def test_a_damaged_checkpoint_is_refused(command, here, tmp_path, capsys):
    run = str(damaged(here / "run", tmp_path / "damaged"))
    argv = {
        "train": ["train", "--config", "tiny.py", "--workdir", run, "--quiet"],
        "evaluate": ["evaluate", "--workdir", run],
        "sample": ["sample", "--workdir", run, "--out", str(tmp_path / "x.png")],
    }[command]
    assert main(argv) == 2
    assert "is damaged" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x.png").exists()


def test_a_damaged_configuration_is_refused(here, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{")
    assert main(["evaluate", "--workdir", str(tmp_path)]) == 2
    assert "config.json is not a configuration" in capsys.readouterr().err


def test_an_unconditional_run(here, tmp_path, capsys):
    config = load_config("tiny.py:unconditional")
    claim_workdir(tmp_path / "run", config)
    with Checkpoints(tmp_path / "run", config, write=True) as checkpoints:
        checkpoints.save(jax.jit(lambda: init_state(config))(), {})
    sample = ["sample", "--workdir", str(tmp_path / "run"), "--num", "4", "--out", str(tmp_path / "x.png")]
    for argv, message in {("--guidance", "1"): "attention_temperature", ("--class", "0"): "class must be none"}.items():
        assert main([*sample, *argv]) == 2
        assert message in capsys.readouterr().err
    assert main([*sample, "--guidance", "1", "--attention-temperature", "0.5"]) == 0


@pytest.mark.parametrize("command", ["train", "evaluate", "sample"])
def test_a_bug_keeps_its_traceback(command, here, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ValueError("shapes (3,) and (4,) do not fit")

    module, name = {
        "train": (training, "train"),
        "evaluate": (run_scores, "score_flow"),
        "sample": (sampling.image_sampling, "sample"),
    }[command]
    monkeypatch.setattr(module, name, broken)
    where = {"train": ["--config", "tiny.py"], "sample": ["--out", str(tmp_path / "x.png")]}.get(command, [])
    with pytest.raises(ValueError, match="do not fit"):
        main([command, "--workdir", "run", *where])


@pytest.mark.parametrize(
    ("command", "function"),
    [("train", "starflow_jax.training.train"), ("sample", "starflow_jax.sampling.image_sampling.sample")],
)
def test_control_c_at_any_other_time_is_one_sentence(command, function, here, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(function, interrupted)
    where = {"train": ["--config", "tiny.py"], "sample": ["--out", str(tmp_path / "x.png")]}[command]
    assert main([command, "--workdir", "run", *where]) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("starflow: interrupted; ") and "same command" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert command == "version" or f"starflow {command}" in text.split("examples:")[1]
    options = text.split("options:")[1].split("\n\n")[0].splitlines()
    for number, line in enumerate(options):
        if line.startswith("  -"):  # its explanation follows on the same line or on the next
            explained = re.search(r"\S  +\S", line) or not options[number + 1].startswith("  -")
            assert explained, line


def test_help_and_version_answer_without_jax():
    code = "import sys; from starflow_jax.cli.dispatch import main; main(['train', '--help']); main(['--version']); "
    code += "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    root = Path(__file__).parent.parent
    finished = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr


def test_versions(capsys):
    assert main(["--version"]) == 0 and main(["version"]) == 0
    assert "jax" in capsys.readouterr().out


def test_the_module_runs_like_the_script():
    root = Path(__file__).parent.parent
    argv = [sys.executable, "-m", "starflow_jax", "sample", "--num", "0"]
    finished = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=60)
    assert (
        finished.returncode == 2
        and finished.stderr == "starflow: --num must be an integer from 1 to 1000000000, got '0'\n"
    )


@pytest.mark.parametrize("process", [0, 1])
def test_one_process_speaks_for_all(process, monkeypatch, capsys):
    from starflow_jax.cli.remarks import remark, skipped_lines
    from starflow_jax.data.decoding.bad_examples import Skipped

    monkeypatch.setattr("jax.process_index", lambda: process)
    remark("warning: old")
    skipped_lines(Skipped(1, 1, {"a.png": "broken"}))
    output = capsys.readouterr()
    assert (output.out, output.err) == (("skipped a.png: broken\n", "starflow: warning: old\n"), ("", ""))[process]
