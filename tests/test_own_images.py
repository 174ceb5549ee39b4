"""`starflow init` and experiments/own_images.py: a folder of images becomes an experiment that trains."""

from pathlib import Path

import numpy as np
import pytest
from picture_files import encoded, picture, write_photos

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import ExperimentConfig, build, load_config
from starflow_jax.data.suggestion import FolderSurvey, suggest_config, survey_folder

OWN = str(Path(__file__).parents[1] / "experiments" / "own_images.py")
TINY = [
    "--config.train.steps=2",
    "--config.train.warmup=1",
    "--config.train.batch_size=4",
    "--config.flow.width=24",
    "--config.flow.num_blocks=2",
    "--config.flow.head_dim=24",
]


def photos(folder: Path, *, classes: bool = True, captions: bool = True) -> Path:
    names = {"cats": [(40, 60)] * 5, "dogs": [(36, 36)] * 4}
    if classes:
        write_photos(folder, names, captions=captions)
        return folder
    folder.mkdir()
    for index in range(9):
        (folder / f"{index}.png").write_bytes(encoded(picture(index, 40, 48)))
        if captions:
            (folder / f"{index}.txt").write_text(f"A photo, number {['one', 'two', 'three'][index % 3]}.\n")
    return folder


def survey(**changes) -> FolderSurvey:
    values = {"path": Path("photos"), "num_images": 900, "classes": (), "sides": (300,) * 900, "grey": False}
    values |= {"captioned": 0.0, "words": (), "longest": 0, "has_test": False}
    return FolderSurvey(**values | changes)


@pytest.mark.parametrize(
    ("classes", "captions", "read"),
    [
        (True, True, "classes"),
        (True, False, "classes"),
        (False, True, "text"),
        (False, False, "nothing"),
    ],
)
@pytest.mark.slow  # test_own_images_finds_size_and_classes trains too
def test_init_writes_a_file_that_trains(classes, captions, read, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "data", classes=classes, captions=captions)
    assert main(["init", "--data", "data", "--out", "my.py"]) == 0
    assert "starflow train --config my.py" in capsys.readouterr().out
    config = load_config("my.py")
    assert config.flow.image_shape == (32, 32) and config.flow.channels == 3
    assert (config.flow.num_classes, config.flow.text_dim > 0) == (2 if read == "classes" else 0, read == "text")
    if read == "text":
        assert set(config.text.vocabulary) == {"a", "photo", "number", "one", "two", "three"}
        assert config.flow.text_length == 4
    text = Path("my.py").read_text()
    assert "# Three quarters of the images" in text and max(map(len, text.splitlines())) <= 120
    assert main(["train", "--config", "my.py", "--workdir", "run", "--quiet", *TINY]) == 0
    assert Path("run/config.json").is_file()


def test_init_refuses_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "data")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    Path("mine.py").write_text("kept")
    for data, out, sentence in (
        ("data", "mine.py", "--out must be a new file, got mine.py, which exists"),
        ("data", "mine.txt", "--out must end in .py, got mine.txt"),
        ("nowhere", "new.py", "data folder nowhere does not exist"),
        ("empty", "new.py", "data folder empty contains no image"),
        ("broken", "new.py", "data folder broken contains no readable image"),
    ):
        assert main(["init", "--data", data, "--out", out]) == 2
        message = capsys.readouterr().err
        assert sentence in message and message.count("\n") == 1
    assert Path("mine.py").read_text() == "kept" and not Path("new.py").exists()


def test_own_images_finds_size_and_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "data")
    with pytest.raises(ValueError, match=r"data\.path is missing; --config\.data\.path=FOLDER"):
        load_config(OWN)
    config = load_config(OWN, ["data.path=data"])
    assert config.name == "data" and config.flow.num_classes == 2 and config.flow.image_size == 32
    chosen = load_config(OWN, ["data.path=data", "flow.image_size=16", "train.steps=7"])
    assert (chosen.flow.image_size, chosen.flow.patch_size, chosen.train.steps) == (16, 1, 7)


@pytest.mark.slow
def test_own_images_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "data")
    arguments = ["--config", f"{OWN}:tiny", "--config.data.path=data", "--workdir", "run", "--quiet"]
    assert main(["train", *arguments]) == 0


@pytest.mark.parametrize("num_images", [1, 7, 900, 30_000, 10**6])
@pytest.mark.parametrize("side", [5, 20, 100, 4000])
def test_every_suggestion_is_a_configuration(num_images, side):
    for found in (
        survey(num_images=num_images, sides=(side,)),
        survey(num_images=num_images, sides=(side,), classes=("a", "b"), grey=True),
        survey(num_images=num_images, sides=(side,), captioned=1.0, words=("cat", "dog"), longest=9),
    ):
        config = build(ExperimentConfig, suggest_config(found).values)
        assert config.flow.image_shape[0] <= max(side, 4) and np.prod(config.flow.grid) <= 1024
        assert config.train.batch_size <= max(num_images, 1)


def test_given_values_are_kept():
    given = {"name": "mine", "flow": {"image_size": 48, "width": 96}, "train": {"batch_size": 8}}
    values = suggest_config(survey(), given).values
    assert values["name"] == "mine" and values["flow"]["patch_size"] == 3 and values["train"]["batch_size"] == 8
    assert build(ExperimentConfig, values).flow.width == 96


def test_survey_reads_sizes_and_captions(tmp_path):
    found = survey_folder(photos(tmp_path / "data"))
    assert (found.num_images, found.classes, found.captioned, found.has_test) == (9, ("cats", "dogs"), 1.0, False)
    assert found.sides == (36,) * 4 + (40,) * 5 and found.words[0] == "a" and found.longest == 2
    assert found.sizes() == "9 from 32 to 63 pixels"
