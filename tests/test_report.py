"""`starflow report`: the page of a run, from whatever its folder holds."""

import dataclasses
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser

import fsspec
import numpy as np
import pytest
from PIL import Image

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import (
    DataConfig,
    ExperimentConfig,
    FlowConfig,
    PixelMapConfig,
    SourceConfig,
    TrainConfig,
    load_config,
    to_json,
)
from starflow_jax.core.config.autoencoder_config import (
    AutoencoderExperiment,
    LossConfig,
    NetworkConfig,
    ReconstructionConfig,
)
from starflow_jax.core.config.learned_inverse_config import LearnedInverseConfig, LearnedInverseExperiment
from starflow_jax.core.html_page import escaped, html_page, html_table
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.publication import Publication
from starflow_jax.core.storage.store import open_store
from starflow_jax.reports.configuration import commands, settings
from starflow_jax.reports.curve_chart import Line, chart
from starflow_jax.reports.likelihood_results import likelihood_rows, read_likelihoods
from starflow_jax.reports.metric_curves import curve_figures
from starflow_jax.reports.pictures import MOST_PICTURES, picture_figure, sample_grids, spread
from starflow_jax.reports.run_report import ReportRequest, write_run_report
from starflow_jax.training.checkpoints.workdir import in_use
from starflow_jax.training.loop.goodput import read_goodput
from starflow_jax.training.loop.metrics import read_metrics

HOSTILE = "<script>alert('1')</script>\"&\x00\u202e"
CONFIG = ExperimentConfig(
    name="small",
    flow=FlowConfig(family="tarflow", channels=1, image_size=4, width=8, num_blocks=1, layers_per_block=1, head_dim=8),
    data=DataConfig(),
    train=TrainConfig(steps=20, batch_size=4, lr=1e-2),
)
METRICS = "step,loss,bits_per_dim,learning_rate,images_per_second,skipped_updates,held_out_bits_per_dim\n"
# Elements that fetch something or run something, and attributes that do.
ACTIVE = {"script", "iframe", "object", "embed", "link", "base", "form", "audio", "video", "use", "image"}


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.sources = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on") and name != "href", (tag, name)
            if name == "src":
                self.sources.append(value)

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def page_of(path):
    """The page, which loads nothing and runs nothing."""
    text = path.read_bytes().decode("utf-8")
    page = Page(text)
    assert not ACTIVE & set(page.tags)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "url(" not in text and "://" not in text
    return page


def write_run(folder, config=CONFIG, metrics=METRICS + "10,-1,4.5,0.01,100,0,\n20,-2,3.5,0.001,120,1,3.6\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config))
    (folder / "metrics.csv").write_text(metrics)
    return folder


def write_picture(path, size=(8, 8)):
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)


def test_a_run_on_one_page(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    for step in (20, 10):
        write_picture(run / f"samples_{step:06d}.png")
    scores = {"step": 20, "split": "test", "model": "flow", "bits_per_dim": {"mean": 3.25, "images": 7}}
    (run / "scores.json").write_text(json.dumps(scores))
    assert main(["report", "--workdir", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = page_of(run / "report.html")
    assert "stopped: step 20 of 20, no complete checkpoint" in page.text
    for words in ("small", "tarflow", "bits/dim", "held out", "learning rate", "images per second", "skipped so far"):
        assert words in page.text
    assert "lowest 3.5 at step 20" in page.text and "3.2500" in page.text and "flow, test images" in page.text
    assert page.text.index("step 10") < page.text.rindex("step 20") and len(page.sources) == 2
    assert "flow.width" in page.text and "starflow train --config again.py" in page.text
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_bad_requests_are_one_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    run = write_run(tmp_path / "run")
    (run / "report.html").mkdir()
    cases = {
        "contains no training run": ["--workdir", str(tmp_path / "empty")],
        "is not a configuration": ["--workdir", str(tmp_path / "broken")],
        "--out must end with .html, got": ["--workdir", str(run), "--out", str(run / "config.json")],
        "--out must name a file, got the folder": ["--workdir", str(run)],
    }
    for sentence, arguments in cases.items():
        assert main(["report", *arguments]) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "empty" / "report.html").exists()
    assert main(["report", "--workdir", str(run), "--out", str(tmp_path / "new" / "page.HTM")]) == 0
    page_of(tmp_path / "new" / "page.HTM")


def test_the_run_and_the_page_may_be_in_a_store(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "copies"))
    run = write_run(tmp_path / "run")
    write_picture(run / "samples_000020.png")
    address = f"memory://{tmp_path.name}/run"
    files = fsspec.filesystem("memory")
    files.put(str(run), address.removeprefix("memory:/"), recursive=True)
    assert main(["report", "--workdir", address]) == 2
    assert f"--out is required where --workdir is an address, got {address} alone" in capsys.readouterr().err
    assert main(["report", "--workdir", address, "--out", f"{address}.html"]) == 0
    assert capsys.readouterr().out == f"report: {address}.html\n"
    (tmp_path / "page.html").write_bytes(files.cat(f"{address}.html"))
    text = (tmp_path / "page.html").read_text()
    assert str(tmp_path) not in text and "data:image/png" in text
    assert f"with fsspec.open(&#x27;{address}/config.json&#x27;) as file:" in text


def test_results_that_other_commands_wrote_beside_a_published_run_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("STARFLOW_STORAGE", str(tmp_path / "copies"))
    address = f"memory://{tmp_path.name}/published"
    Publication(open_store(Address.parse(address)), write_run(tmp_path / "run")).publish()
    scores = {"step": 20, "split": "test", "model": "flow", "bits_per_dim": {"mean": 3.25, "images": 7}}
    files = fsspec.filesystem("memory")
    for name, mean in {"scores": 3.25, "more/scores": 2.125, "checkpoints/20/x": 1.5, "a/b/deeper": 1.75}.items():
        scores["bits_per_dim"]["mean"] = mean
        files.pipe_file(f"{address}/{name}.json", json.dumps(scores).encode())
    assert main(["report", "--workdir", address, "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "3.2500" in text and "2.1250" in text and "1.5000" not in text and "1.7500" not in text


def test_nothing_of_the_folder_becomes_markup(tmp_path):
    folder = tmp_path / os.fsdecode(b"<b>\xff'\"")
    config = dataclasses.replace(CONFIG, name=HOSTILE)
    column = HOSTILE.replace('"', "").replace("\x00", "")
    run = write_run(folder, config, f'step,"{column}",loss\n1,2,nan\n2,3,inf\n')
    (run / "<i>.json").write_bytes(b"\xff\xfe")
    (run / "deep.json").write_text("[" * 100_000)
    (run / "scores.json").write_text(json.dumps({"model": HOSTILE, "bits_per_dim": {"mean": 1.0}, "step": HOSTILE}))
    (run / "samples_000003.png").write_text(HOSTILE)
    (run / "checkpoints" / HOSTILE.replace("/", "").replace("\x00", "")).mkdir(parents=True)
    page = page_of(write_run_report(ReportRequest(run)))
    assert "i" not in page.tags and "b" not in page.tags
    assert "<script>" in page.text and "\\x00" in page.text and "\\u202e" in page.text and "\\udcff" in page.text
    assert "samples_000003.png: it is not an image" in page.text and "2 not finite" in page.text
    assert "<i>.json is left out" in page.text and "deep.json is left out" in page.text


def test_damaged_metrics_do_not_stop_a_report(tmp_path):
    rows = "nan,1\ninf,2\n1,nan\n2,1e999\n3,1e308\n4,-1e308\n1e300,5\n5\n6,7,8\nx,y\n"
    run = write_run(tmp_path, metrics=f"step,loss\n{rows}7,{'9' * 200_000}\n8,1\n")
    steps = [row["step"] for row in read_metrics(run / "metrics.csv")]
    assert steps == [1.0, 2.0, 3.0, 4.0, 1e300]
    assert "not finite" in page_of(write_run_report(ReportRequest(run))).text


def test_goodput_is_shown_and_a_damaged_one_left_out(tmp_path):
    run = write_run(tmp_path)
    seconds = {"compile": 5.0, "step": 15.0}
    attempt = {"first_step": 0, "last_step": 20, "began": 0.0, "recorded": 20.0, "seconds": seconds}
    (run / "goodput.json").write_text(json.dumps({"attempts": [attempt]}))
    page = page_of(write_run_report(ReportRequest(run)))
    assert "Goodput" in page.text and "75.0 % of 20.0 s in 1 attempt" in page.text
    damages = ({"seconds": {"step": math.nan}}, {"seconds": {"step": 1e308}}, {"last_step": math.inf}, {"seconds": []})
    for damage in damages:
        (run / "goodput.json").write_text(json.dumps({"attempts": [attempt | damage]}))
        assert read_goodput(run) is None
    assert "Goodput" not in page_of(write_run_report(ReportRequest(run))).text


def test_a_run_that_has_not_begun_or_is_in_progress(tmp_path):
    run = write_run(tmp_path, metrics="")
    (run / "metrics.csv").unlink()
    page = page_of(write_run_report(ReportRequest(run)))
    assert "not begun: step 0 of 20" in page.text and "There are no metrics yet." in page.text
    with in_use(run):
        assert "running: step 0 of 20" in page_of(write_run_report(ReportRequest(run))).text


def test_runs_of_autoencoders_and_learned_inverses(tmp_path):
    network = NetworkConfig((4, 4), layers_per_block=1, norm_num_groups=2)
    autoencoder = AutoencoderExperiment(
        name="vae",
        data=SourceConfig(source="digits"),
        image_size=8,
        loss=LossConfig(kl=1e-6),
        train=ReconstructionConfig(steps=9, batch_size=2, lr=1e-3),
        network=network,
    )
    run = write_run(tmp_path / "vae", autoencoder, "step,mse,kl\n1,0.5,2\n9,0.25,3\n")
    write_picture(run / "reconstructions.png")
    page = page_of(write_run_report(ReportRequest(run)))
    assert "autoencoder, " in page.text and "mse" in page.text and len(page.sources) == 1
    assert "starflow train-autoencoder --config again.py" in page.text
    flow = write_run(tmp_path / "flow")
    inverse = LearnedInverseExperiment(
        name="inverse", network=LearnedInverseConfig(8, head_dim=4), train=CONFIG.train, flow_step=3
    )
    page = page_of(write_run_report(ReportRequest(write_run(flow / "inverse", inverse))))
    assert "learned inverse of step 3" in page.text
    assert f"starflow train-inverse --workdir {flow} --step 3 --config.name=inverse" in page.text
    shutil.rmtree(tmp_path / "vae")
    page = page_of(write_run_report(ReportRequest(write_run(tmp_path / "alone" / "inverse", inverse))))
    assert "parameters unknown" in page.text and "The run of the flow is not where it was." in page.text


def test_the_commands_train_the_same(tmp_path):
    config = dataclasses.replace(CONFIG, name='it\'s "quoted" $HOME `x`')
    run = write_run(tmp_path / "a 'b' $c", config)
    text = re.search("<<'END'\n(.*)END\n", commands(config, run), re.DOTALL)[1]
    (tmp_path / "again.py").write_text(text)
    assert load_config(str(tmp_path / "again.py")) == config


def test_settings_differ_from_the_defaults():
    found = {one.name: one for one in settings(CONFIG)}
    assert found["train.ema"].changed is False and found["train.ema"].value == found["train.ema"].default
    assert found["flow.width"].changed and found["flow.width"].default == "(none: must be set)"
    assert found["seed"].changed is False and "flow.pixel_map" in found and not found["flow.pixel_map"].changed
    flow = dataclasses.replace(CONFIG.flow, expansion=2, pixel_map=PixelMapConfig(levels=17))
    found = {one.name: one for one in settings(dataclasses.replace(CONFIG, flow=flow))}
    assert found["flow.expansion"].changed and found["flow.expansion"].default == "4"
    assert found["flow.pixel_map"][1:4] == ("PixelMapConfig", "None", True)
    assert found["flow.pixel_map.levels"].changed and not found["flow.pixel_map.alpha"].changed


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [1.0, 1.0],
        [0.0] * 5,
        [math.nan, math.inf, 2.0],
        [1e308, -1e308],
        [5e-324, 0.0],
        [1e16, 1e16 + 2],
        list(range(5000)),
        [1e6] + [float(index) for index in range(100)],
    ],
)
def test_every_curve_is_drawn_inside_its_picture(values):
    figure = chart("a<b", [Line("x&y", tuple((float(step), value) for step, value in enumerate(values)))])
    assert "a&lt;b" in figure and "x&amp;y" in figure and "<svg" in figure
    assert not re.search(r"\b(nan|inf)\b", figure.split("<figcaption>")[0])
    assert len(figure) < 30_000


def test_an_empty_curve_and_a_cut_start_are_named():
    assert "no values" in chart("t", [Line("x", ())])
    points = tuple((float(step), 1000.0 if step < 2 else 1.0 + step / 100) for step in range(100))
    assert "the beginning is outside the picture" in chart("t", [Line("x", points)])
    assert curve_figures([]) == []
    assert len(curve_figures([{"step": 1.0, **{f"c{index}": 1.0 for index in range(100)}}])) == 30


def test_pictures_are_bounded(tmp_path, monkeypatch):
    for step in range(40):
        write_picture(tmp_path / f"samples_{step:06d}.png")
    (tmp_path / "samples_x.png").touch()
    chosen = [step for step, _ in spread(sample_grids(tmp_path))]
    assert len(chosen) == MOST_PICTURES and (chosen[0], chosen[-1]) == (0, 39) and chosen == sorted(set(chosen))
    noise = np.random.default_rng(0).integers(256, size=(500, 800, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    figure = picture_figure(tmp_path / "noise.png", "noise")
    assert "data:image/jpeg" in figure and len(figure) < 700_000
    data = (tmp_path / "noise.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    # The header of a picture of 100000 x 100000 pixels.
    huge = bytearray(data)
    huge[16:24] = (100_000).to_bytes(4, "big") * 2
    (tmp_path / "huge.png").write_bytes(huge)
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("cut", "huge", "pipe", "missing"):
        assert f"{name}.png: " in picture_figure(tmp_path / f"{name}.png", name)


def test_likelihoods_of_every_command():
    bits = {"mean": 1.5, "image_error": 0.1, "images": 4}
    sweep = {"cells": [{"run": "r", "data": "d", "noise": "gaussian", "sigma": 0.1, "step": 3, "bits_per_dim": 2.0}, 5]}
    cases = (
        (
            {"bits_per_dim": bits, "accuracy": {"mean": 0.5}, "step": 2},
            ("images", "2", "1.5000", "0.1000", "4", "50.0 %"),
        ),
        ({"bits_per_dim": {"mean": 1.0, "clip_error": None, "clips": 3}}, ("clips", "-", "1.0000", "-", "3", "-")),
        ({"bits_per_dim": {"bits_per_dim": bits}, "rows": []}, ("images", "-", "1.5000", "0.1000", "4", "-")),
        ({"scores": {"bits_per_dim": 1.0, "error": 0.5, "clips": 9}}, ("clips", "-", "1.0000", "0.5000", "9", "-")),
        (sweep, ("r: d, noise 0.1", "3", "2.0000", "-", "-", "-")),
    )
    for values, row in cases:
        assert likelihood_rows("f", values) == [("f", *row)]
    for values in (None, [], 3, {}, {"bits_per_dim": "x"}, {"bits_per_dim": {"mean": math.nan}}, {"scores": [1, None]}):
        assert likelihood_rows("f", values) == []
    assert [row[1] for row in likelihood_rows("f", {"scores": [{"model": "a", "bits_per_dim": bits}] * 2})] == ["a"] * 2


def test_results_in_folders_are_found(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    line = json.dumps({"run": "r", "bits_per_dim": 2.0})
    (folder / "results.jsonl").write_text(f'{line}\n{line}\n{{"run": ')
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a.json").write_text('{"bits_per_dim": 1.0}')
    found = read_likelihoods(tmp_path, {"more.json": {"bits_per_dim": 1.0}})
    assert [row[0] for row in found.rows] == ["more.json", "sweep/results.jsonl", "sweep/results.jsonl"]
    assert len(found.remarks) == 1 and found.remarks[0].startswith("broken.json is left out: ")


def test_pages_escape_their_text():
    assert escaped("a\u202eb\tc\n<") == "a\\u202eb\tc\n&lt;"
    page = html_page("<title>", html_table([("<", ">"), ("&", "é")], marked={1}))
    assert "&lt;title&gt;" in page and '<tr class="marked"><td>&amp;</td><td>é</td></tr>' in page
