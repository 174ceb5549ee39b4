"""`starflow data`, and training on what it showed."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from picture_files import write_clip, write_photos
from PIL import Image

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import apply_overrides, build
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.training import load_run, train

WORDS = ["a", "cat", "dog", "moving", "(extend)"]
DIGITS = ["data", "--config", "experiments/digits.py:tiny", "--seconds", "0"]


def experiment(root, **data):
    """A mixture of photographs of two shapes and of clips."""
    parts = [
        {"source": "images", "path": str(root / "photos"), "aspect_ratios": ["1:1", "2:1"], "weight": 0.5, "flip": 0.5},
        {"source": "videos", "path": str(root / "clips"), "frames": 3, "fps": 8.0, "batch_size": 2, "drop_first": 0.3},
    ]
    return {
        "name": "mixed",
        "flow": {
            "family": "starflow", "rope": True, "sos": True, "channels": 3, "image_size": 16, "patch_size": 4,
            "width": 20, "num_blocks": 1, "layers_per_block": 1, "head_dim": 20, "text_dim": 5, "text_length": 3,
        },
        "text": {"vocabulary": WORDS},
        "data": {"source": "mixture", "frames": 3, "mixture": parts, "noise": "gaussian", "noise_std": 0.2, **data},
        "train": {"steps": 6, "batch_size": 4, "lr": 1e-3, "checkpoint_every": 3, "log_every": 2},
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_photos(root / "photos", {"cat": [(20, 20)] * 5, "dog": [(20, 40)] * 3})
    (root / "photos" / "dog" / "bad.png").write_bytes(b"bad")
    (root / "clips").mkdir()
    for name in ("a", "b"):
        write_clip(root / "clips" / f"{name}.mp4", 10)
        (root / "clips" / f"{name}.txt").write_text("a cat moving away")
    values = json.dumps(experiment(root)).replace("true", "True").replace("null", "None")
    lines = ["from ml_collections import ConfigDict", "def get_config():", f"    return ConfigDict({values})"]
    (root / "c.py").write_text("\n".join(lines))
    return root


def test_what_a_mixture_will_show(folder, capsys):
    sheet, report = folder / "sheet.png", folder / "report.json"
    arguments = ["--config", str(folder / "c.py"), "--config.data.threads=2", "--seconds", "0.1", "--out", str(sheet)]
    assert main(["data", *arguments, "--json", str(report)]) == 0
    output = capsys.readouterr().out
    assert "3 shapes of batches, for each of which a program is compiled" in output
    assert "dog/bad.png: it is not an image" in output
    assert "photos 2:1 has fewer examples than a batch" in output
    assert "not in the vocabulary and are skipped: away" in output
    figures = json.loads(report.read_text())
    parts = figures["parts"]
    assert {(part["name"], part["examples"], tuple(part["shape"]), part["batch_size"]) for part in parts} == {
        ("photos 1:1", 5, (16, 16, 3), 4),
        ("photos 2:1", 3, (12, 24, 3), 4),
        ("clips 1:1", 2, (3, 16, 16, 3), 2),
    }
    shares = {part["name"]: part["share"] for part in parts}
    assert shares["clips 1:1"] == pytest.approx(1 / 1.5) and sum(shares.values()) == pytest.approx(1)
    assert figures["examples_per_second"] > 0 and figures["unknown_words"] == ["away"]
    with Image.open(sheet) as image:
        assert np.asarray(image.convert("RGB")).std() > 20


@pytest.mark.slow  # test_loader.py resumes loaders with other readers
def test_a_run_goes_on_with_other_readers_to_the_same_parameters(folder, tmp_path):
    values = experiment(folder)
    whole = build(ExperimentConfig, values)
    assert train(whole, tmp_path / "whole", progress=False).step == 6

    def stop(snapshot):
        raise KeyboardInterrupt

    early = build(ExperimentConfig, apply_overrides(values, ["train.sample_every=4"]))
    assert train(early, tmp_path / "parts", callbacks=[stop], progress=False).interrupted
    later = build(ExperimentConfig, apply_overrides(values, ["data.threads=2", "data.prefetch=3"]))
    assert train(later, tmp_path / "parts", progress=False).step == 6
    one, other = (load_run(tmp_path / name)[2] for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_one_file_is_data_enough(folder, tmp_path, capsys):
    write_photos(tmp_path / "one", {"cat": [(20, 20)]})
    arguments = ["--config", str(folder / "c.py"), "--seconds", "0.05", "--config.data.mixture=()"]
    arguments += ["--config.data.source=images", f"--config.data.path={tmp_path / 'one'}", "--config.data.frames=0"]
    assert main(["data", *arguments]) == 0
    assert "has fewer examples than a batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "sheet.jpg"], "--out must end in .png, got sheet.jpg"),
        (["--seconds", "-1"], "must be a finite number >= 0, got '-1'"),
        (["--seconds", "1e30"], "--seconds must be a number <= 1e+06, got '1e30'"),
        (["--seconds", "1e5"], "--seconds must be at most 3600, got 100000"),
        (["--config.data.threads=x"], "config.data.threads must be an integer, got 'x'"),
        (["--config.data.thread=1"], "config.data has no field 'thread'; did you mean threads"),
        (["--config.data.source=images", "--config.data.path=gone"], "data folder gone does not exist"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(arguments, sentence, capsys):
    assert main([*DIGITS, *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_run_that_does_not_exist_yet_is_said_to_be_missing(tmp_path, capsys):
    report, run = tmp_path / "report.json", tmp_path / "run"
    arguments = [*DIGITS, "--workdir", str(run), "--json", str(report)]
    assert main(arguments) == 0
    assert f"no comparison with the training step of a run: {run} does not exist yet" in capsys.readouterr().out
    run.mkdir()
    assert main(arguments) == 0
    assert "contains no metrics.csv yet, which training writes" in capsys.readouterr().out
    (run / "metrics.csv").write_text("step,loss\n1,2.0\n")
    assert main(arguments) == 0
    assert "metrics.csv contains no images_per_second yet" in capsys.readouterr().out
    assert json.loads(report.read_text())["needed_per_second"] is None


def test_the_account_of_captions_classes_and_what_is_left_aside(folder, tmp_path, capsys):
    write_photos(tmp_path / "p", {"cat": [(20, 20)] * 3, "dog": [(20, 20)]})
    (tmp_path / "p" / "cat" / "1.txt").unlink()
    (tmp_path / "p" / "dog" / "0.json").write_text('{"text": "a dog"}')
    (tmp_path / "p" / "dog" / "loop").symlink_to(tmp_path / "p")
    report = tmp_path / "report.json"
    arguments = ["--config", str(folder / "c.py"), "--seconds", "0", "--config.data.mixture=()", "--json", str(report)]
    arguments += ["--config.data.source=images", f"--config.data.path={tmp_path / 'p'}", "--config.data.frames=0"]
    assert main(["data", *arguments]) == 0
    said = capsys.readouterr().out
    assert "captions: 3 of 4 examples have one (2 in a text file, 1 in a JSON file); 1 HAVE NONE" in said
    assert "classes: 0 cat, 1 dog" in said and "1 linked folders lead to a folder that is read already" in said
    figures = json.loads(report.read_text())
    assert figures["captions"]["counts"] == {"text file": 2, "JSON file": 1} and figures["class_names"] == [
        "cat",
        "dog",
    ]


def test_a_folder_that_is_mostly_broken_ends_in_a_sentence(folder, tmp_path, capsys):
    write_photos(tmp_path / "p", {"cat": [(20, 20)] * 2})
    for number in range(20):
        (tmp_path / "p" / "cat" / f"bad{number}.png").write_bytes(b"x")
    arguments = ["--config", str(folder / "c.py"), "--seconds", "3", "--config.data.mixture=()"]
    arguments += ["--config.data.source=images", f"--config.data.path={tmp_path / 'p'}", "--config.data.frames=0"]
    assert main(["data", *arguments]) == 2
    assert "examples in a row were bad, such as" in capsys.readouterr().err
