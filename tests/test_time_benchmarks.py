"""The benchmarks of growth with the sequence and of the time to a sample: names, tables, and quick runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"
sys.path.append(str(BENCHMARKS))

import checkpoint_cost  # noqa: E402
import growth  # noqa: E402
import time_to_sample  # noqa: E402
from flow_operations import JacobiSetting  # noqa: E402
from growth_plot import plot  # noqa: E402


@pytest.mark.parametrize("setting", [JacobiSetting(16), JacobiSetting(32, 1e-5), JacobiSetting(8, 0.0)])
def test_the_name_of_a_setting_is_read_back(setting):
    assert JacobiSetting.parse(setting.name) == setting == JacobiSetting.parse(f"{setting.name} guided")


def test_other_names_are_no_settings():
    assert JacobiSetting.parse("sequential guided") is None
    for name in ("forward", "jacobi", "jacobi 16 at", "auto"):
        with pytest.raises(ValueError, match="an inverse is named sequential, jacobi N or jacobi N at TOLERANCE"):
            JacobiSetting.parse(name)


def test_the_error_is_that_of_the_worst_sample(tmp_path):
    exact, other = tmp_path / "exact.npz", tmp_path / "other.npz"
    x = np.ones((2, 3, 4, 4))
    np.savez(exact, x=x)
    np.savez(other, x=x + np.array([0.0, 0.01]).reshape(2, 1, 1, 1))
    assert time_to_sample.sample_error(other, exact) == pytest.approx(0.01)
    np.savez(other, x=np.where(x[:1] > 0, np.nan, x))
    assert time_to_sample.sample_error(other, exact) == float("inf")


def lines_of_growth():
    described = {"forward": {"largest_array": [4, 128, 64]}, "sequential": {"evaluations": 64}}
    described["sequential"]["largest_array"] = [2, 2]
    ours = {"forward": {"seconds": 0.5, "peak": 2**21}, "sequential": {"seconds": 2.0, "peak": None}}
    theirs = {"forward": {"seconds": 1.0, "peak": 2**22}}
    reasons = {"sequential": "it would take about 900 s (--limit 400)"}
    lines = [growth._line(name, ours, theirs, described, reasons) for name in ("forward", "sequential")]
    return [{"tokens": 64, **line} for line in (lines[0], lines[1] | {"operation": growth.INVERSE})]


def test_the_table_of_growth_names_what_is_left_out():
    printed = growth.table(lines_of_growth(), "original")
    assert "4 x 128 x 64" in printed and "2.00" in printed and "inverse (sequential)" in printed
    assert "inverse of 64 tokens is left out of the original: it would take about 900 s" in printed


class Side:
    """A side whose operations take one second for each token, but a tenth of it for the passes."""

    def __init__(self, name, side, threads, **options):
        self.ran = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, do, operation="", **fields):
        if do == "prepare":
            self.tokens = fields["arguments"]["img_size"] ** 2 if "arguments" in fields else Side.last
            Side.last = self.tokens
            return {"facts": {"blocks": [], "jacobi": {}}}
        if do == "time":
            return {"seconds": self.tokens * (0.1 if operation in growth.PASSES else 1.0), "peak": 1}
        return {"chunks": [], "largest_array": [1]} if do == "describe" else {}


def test_what_would_take_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(growth, "SideProcess", Side)
    lines = growth.Growth(None, "python", 1, 1, 5.0, 100.0).run({}, growth.Sizes(), [64, 16])
    measured = [(line["tokens"], line["operation"]) for line in lines]
    # 16 tokens of an inverse take 16 s, and so 256 s would be expected of 64 tokens; passes would take 26 s.
    assert measured == [
        (16, "forward"),
        (16, "forward+backward"),
        (16, "inverse"),
        (64, "forward"),
        (64, "forward+backward"),
    ]
    assert all(line["ratio"] == 1 for line in lines)


def test_growth_is_drawn(tmp_path):
    plot(tmp_path / "growth.png", lines_of_growth(), "original")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_the_fastest_setting_of_each_side_counts():
    lines = [
        {"setting": "sequential", "ours": {"minimum": 2.0}, "theirs": {"minimum": 6.0}},
        {"setting": "jacobi 32 at 1e-05", "ours": {"minimum": 3.0}, "theirs": {"minimum": 4.0}},
        {"setting": "auto", "ours": {"minimum": 1.0, "error": 5e-4}},
    ]
    summary = time_to_sample.Measurement._summary(lines, 1e-3)
    assert summary["ratio"] == 4 and summary["theirs_fastest"] == "jacobi 32 at 1e-05"
    assert summary["sequential_over_auto"] == 2 and summary["ours_fastest"] == "auto"
    missed = time_to_sample.Measurement._summary(lines, 1e-4)
    assert "ratio" not in missed and missed["sequential_over_auto"] is None
    assert missed["ours_fastest"] == "sequential"


@pytest.mark.parametrize(
    ("script", "options", "sentence"),
    [
        (growth, ["--tokens", "250"], "--tokens must be square numbers from 16 to 65536, got '250'"),
        (growth, ["--plot", "a.jpg"], "--plot must end in .png, got a.jpg"),
        (growth, ["--limit", "nan"], "--limit must be above 0, got nan"),
        (time_to_sample, ["--batch", "1,0"], "--batch must be numbers from 1 to 1024, got '1,0'"),
        (time_to_sample, ["--target", "2"], "--target must be from 1e-6 to 1, got 2.0"),
        (time_to_sample, ["--config", "absent"], "config.json cannot be read as JSON"),
    ],
)
def test_bad_options_are_sentences(script, options, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(options)
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["growth", "time_to_sample"])
def test_quick_runs(name, tmp_path):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--threads", "1"]
    run = subprocess.run(
        [*command, "--json", str(tmp_path / "f.json")], capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    if name == "growth":
        assert {line["operation"] for line in figures["lines"]} == {"forward", "forward+backward", "inverse"}
        assert {line["tokens"] for line in figures["lines"]} == {16, 64} and "largest array" in run.stdout
    else:
        (result,) = figures["results"]
        settings = {line["setting"]: line for line in result["settings"]}
        assert settings["auto"]["ours"]["error"] <= figures["target"] and "auto chose" in run.stdout


def test_a_save_that_fails_ends_the_updates_that_are_made_meanwhile(tmp_path):
    def failed():
        raise OSError("the disk is full")

    threads = threading.active_count()
    with pytest.raises(OSError, match="the disk is full"):
        checkpoint_cost.until_published(None, tmp_path / "checkpoints/5", failed, lambda: 0.1)
    assert threading.active_count() == threads


@pytest.mark.slow
def test_the_cost_of_a_checkpoint_is_measured_in_both_kinds_of_intervals(tmp_path):
    script = BENCHMARKS / "checkpoint_cost.py"
    config = BENCHMARKS.parent / "digits.py"
    command = [sys.executable, str(script), "--config", f"{config}:tiny", "--rounds", "1", "--updates", "5", "--json"]
    subprocess.run([*command, str(tmp_path / "cost.json")], check=True, capture_output=True)
    figures = json.loads((tmp_path / "cost.json").read_text())
    assert figures["updates"]["quiet"] == 5 and figures["updates"]["saving"] >= 1
    assert figures["ratio"] == figures["update_seconds_while_saving"] / figures["update_seconds"]
    assert figures["checkpoint_bytes"] > 10_000 and figures["blocked_seconds"] > 0
