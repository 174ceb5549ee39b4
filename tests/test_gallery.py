"""`starflow gallery`: one page with samples, their likelihoods and settings."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from random_flows import CLASSES
from test_cli_sample_videos import save_run, video_config

import starflow_jax as sf
from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import ExperimentConfig, build


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("gallery")
    flow = dataclasses.asdict(CLASSES)
    names = [f"<b>{index}</b>" for index in range(CLASSES.num_classes)]
    still = {"name": "still", "flow": flow, "data": {"label_drop": 0.1, "class_names": names}}
    save_run(home / "still", build(ExperimentConfig, still | {"train": {"steps": 1, "batch_size": 1, "lr": 1e-3}}))
    return home


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_images_with_their_likelihoods(home, tmp_path, capsys):
    out, figures = tmp_path / "shown", tmp_path / "figures.json"
    argv = ["gallery", "--workdir", str(home / "still"), "--num", "5", "--seed", "3", "--json", str(figures)]
    assert main([*argv, "--out", str(out)]) == 0
    assert "5 images" in capsys.readouterr().out
    page, found = (out / "index.html").read_text(), json.loads((out / "gallery.json").read_text())
    assert found == json.loads(figures.read_text()) and {path.name for path in out.iterdir()} == {
        "index.html",
        "gallery.json",
    }
    run = sf.from_pretrained(home / "still")
    samples = sf.sample(run, num=5, seed=3)
    np.testing.assert_allclose(
        [one["log_likelihood"] for one in found["samples"]], sf.log_prob(run, samples), rtol=1e-6
    )
    for score in sf.log_prob(run, samples):
        assert f"{score:,.1f} nats, {score / found['dimensions']:.3f} a dimension" in page
    elements = Elements(page).found
    pictures = [attributes for tag, attributes in elements if tag == "img"]
    assert len(pictures) == 5 and all(one["src"].startswith("data:image/png;base64,") for one in pictures)
    # Names of classes come from file names: they are text, and no path of the computer is written.
    assert "&lt;b&gt;0&lt;/b&gt;" in page and "b" not in {tag for tag, _ in elements} and str(home) not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page) and "script" not in {tag for tag, _ in elements}


@pytest.mark.slow
def test_videos_play_and_stand_below_their_caption(tmp_path):
    out = tmp_path / "shown"
    save_run(tmp_path / "clips", video_config())
    captions = ["--caption", "a one", "--caption", "two left"]
    argv = ["gallery", "--workdir", str(tmp_path / "clips"), *captions, "--num", "2", "--guidance", "0"]
    assert main([*argv, "--solver", "sequential", "--out", str(out)]) == 0
    page, found = (out / "index.html").read_text(), json.loads((out / "gallery.json").read_text())
    videos = [attributes for tag, attributes in Elements(page).found if tag == "video"]
    assert len(videos) == 4 and all(one["src"].startswith("data:video/mp4;base64,") for one in videos)
    assert "media-src data:" in page and page.index("<h2>a one</h2>") < page.index("<h2>two left</h2>")
    assert found["settings"]["solver"]["name"] == "sequential" and found["settings"]["guidance"] == 0.0
    assert [one["title"] for one in found["samples"]] == ["a one", "a one", "two left", "two left"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num", "501"), "--num must give at most 500 samples on one page, got 501"),
        (("--candidates", "600", "--keep", "600", "--class", "1"), "--keep must give at most 500 samples on one page"),
        (("--frames", "4"), "--frames cannot be used with the run"),
    ],
)
def test_requests_that_do_not_fit_are_refused_before_anything_is_drawn(home, tmp_path, capsys, options, message):
    out = tmp_path / "shown"
    assert main(["gallery", "--workdir", str(home / "still"), *options, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_a_folder_with_files_is_refused(home, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("")
    assert main(["gallery", "--workdir", str(home / "still"), "--num", "1", "--out", str(tmp_path)]) == 2
    assert "--out must be an empty or a new folder" in capsys.readouterr().err
