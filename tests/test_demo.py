"""`starflow demo` from end to end, with its tiny variant."""

import json
import os
import platform
import re
import shutil
import types

import pytest
from PIL import Image

from starflow_jax.cli.dispatch import main
from starflow_jax.demos import digits_demo as demo
from starflow_jax.evaluation import Scores
from starflow_jax.evaluation.likelihood import gaussian_baseline
from starflow_jax.training import TrainResult


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """The folder of a finished demo."""
    out = tmp_path_factory.mktemp("demo") / "out"
    argv = ["demo", "--tiny", "--quiet", "--out", str(out)]
    fit = gaussian_baseline.fit_class_gaussians
    with pytest.MonkeyPatch.context() as patch:
        # One baseline instead of a selection among twenty, which has its own test.
        patch.setattr(demo, "fit_class_gaussians", lambda source, seed: fit(source, components=(1,), draws=1))
        assert main([*argv, "--json", str(out.parent / "copy.json")]) == 0
    return out


@pytest.fixture(scope="session")
def report(done):
    return json.loads((done / demo.FIGURES).read_text())


def test_everything_is_written(done, report):
    assert {path.name for path in done.iterdir()} == {*demo.FILES, demo.RUN_FOLDER}
    for name in (demo.SAMPLES, demo.CURVES):
        with Image.open(done / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200
    assert json.loads((done.parent / "copy.json").read_text()) == report
    page = (done / demo.PAGE).read_text()
    assert f"{report['scores'][0]['bits_per_dim']['mean']:.4f}" in page and page.count("data:image/png") >= 2


def test_both_models_are_scored_on_the_same_draws(report):
    flow, baseline = (score["bits_per_dim"] for score in report["scores"])
    for name in ("images", "draws", "dims", "levels"):
        assert flow[name] == baseline[name]
    assert (flow["images"], flow["dims"], flow["levels"]) == (360, 64, 17)
    assert 2.5 < baseline["mean"] < 2.65 and report["scores"][1]["accuracy"]["mean"] > 0.97
    assert 2.0 < flow["mean"] < 4.5


def test_the_bars_say_what_was_reached(report):
    bits, accuracy = report["bars"]
    assert bits["passed"] == (report["scores"][0]["bits_per_dim"]["mean"] <= 2.2)
    assert accuracy["passed"] == (report["scores"][0]["accuracy"]["mean"] >= 0.97)
    passing = {"bits_per_dim": {"mean": 2.2}, "accuracy": {"mean": 0.97}}
    assert all(bar["passed"] for bar in demo.quality_bars(passing))
    missing = {"bits_per_dim": {"mean": 2.21}, "accuracy": {"mean": 0.969}}
    assert not any(bar["passed"] for bar in demo.quality_bars(missing))


def test_the_report_reads_like_its_figures_and_names_no_machine(done, report):
    text = (done / demo.REPORT).read_text()
    for score in report["scores"]:
        assert f"{score['bits_per_dim']['mean']:.4f}" in text
    assert f"]({demo.SAMPLES})" in text and f"]({demo.CURVES})" in text
    figures = json.dumps(report)
    for content in (text, figures):
        assert str(done) not in content and os.path.expanduser("~") + "/" not in content
        assert not re.search(rf"\b{re.escape(platform.node())}\b", content)
    assert set(report["seconds"]) == {"training", "scoring the flow", "the Gaussian baseline", "sampling"}


def test_a_finished_demo_is_shown_again(done, report, capsys):
    before = {path: path.stat().st_mtime_ns for path in done.iterdir() if path.is_file()}
    assert main(["demo", "--tiny", "--out", str(done)]) == 0
    printed = capsys.readouterr().out
    assert "finished" in printed and f"{report['scores'][0]['bits_per_dim']['mean']:.4f}" in printed
    assert printed.endswith(f"\n  starflow studio --workdir {done / demo.RUN_FOLDER}\n")
    assert {path: path.stat().st_mtime_ns for path in done.iterdir() if path.is_file()} == before


def test_another_seed_needs_another_folder(done, report, capsys):
    seed = report["config"]["seed"] + 1
    assert main(["demo", "--tiny", "--out", str(done), "--seed", str(seed)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "config.seed" in error


def test_a_stopped_demo_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    stopped = TrainResult(step=3, interrupted=True, metrics={}, images_per_second=1.0)
    monkeypatch.setattr(demo, "train", lambda *_, **__: stopped)
    assert main(["demo", "--tiny", "--out", str(tmp_path)]) == 130
    output = capsys.readouterr().err
    assert output == f"starflow: interrupted; the same command resumes {tmp_path / 'run'}\n"
    assert {path.name for path in tmp_path.iterdir()} == {demo.RUN_FOLDER}


def test_a_demo_stopped_after_training_goes_on_with_the_rest(done, report, tmp_path, monkeypatch):
    shutil.copytree(done / demo.RUN_FOLDER, tmp_path / demo.RUN_FOLDER)
    scores = [Scores(**score) for score in report["scores"]]
    monkeypatch.setattr(demo, "score_flow", lambda *_, **__: scores[0])
    monkeypatch.setattr(demo, "score_gaussian", lambda *_, **__: scores[1])
    monkeypatch.setattr(
        demo, "fit_class_gaussians", lambda *_, **__: types.SimpleNamespace(components=1, regularisation=0.1)
    )
    assert main(["demo", "--tiny", "--quiet", "--out", str(tmp_path)]) == 0
    again = json.loads((tmp_path / demo.FIGURES).read_text())
    assert again["begun_at_step"] == again["steps"] and again["scores"] == report["scores"]
    assert f"from step {again['steps']}" in (tmp_path / demo.REPORT).read_text()
    assert (tmp_path / demo.SAMPLES).read_bytes() == (done / demo.SAMPLES).read_bytes()


def test_the_tiny_twin_differs_from_the_demo_in_size_only():
    full, tiny = demo.demo_config(), demo.demo_config(tiny=True, seed=7)
    assert tiny.seed == 7 and tiny.train.steps < full.train.steps
    assert tiny.data == full.data and tiny.flow.num_classes == full.flow.num_classes == 10
