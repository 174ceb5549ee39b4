"""A sweep that is stopped, truncated and repeated gives the same numbers; the content of its report."""

import csv
import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from sweep_runs import (
    COUNT,
    DRAWS,
    Heard,
    assert_identical,
    config_file,
    config_of,
    examples,
    missing_data,
    runs_of,
    swept,
    two_checkpoints,
    write_arrays,
)

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config.sweep_config import SweepConfig, SweepData, SweepRun
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.evaluation.likelihood.image_likelihood import BitsPerDim, log_probs
from starflow_jax.sweeps import make_plan, read_examples, read_results, run_sweep, write_report
from starflow_jax.sweeps import sweep_plots as plots
from starflow_jax.sweeps.datasets import DataSet
from starflow_jax.sweeps.results import Results
from starflow_jax.sweeps.runner import _Sweep


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return two_checkpoints(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def whole(home):
    """A sweep that nothing stopped: what was heard, and its folder."""
    return swept(config_of(home), home / "whole"), home / "whole"


def test_every_cell_of_the_product(whole):
    heard, out = whole
    rows = read_results(out)
    assert len(rows) == len(heard.rows) == 2 * 2 * 2 * 3 and not heard.failures
    names = ("step", "data", "noise", "sigma", "condition")
    assert len({tuple(row[name] for name in names) for row in rows}) == len(rows)
    # Every row was computed once: 33 and 21 rows in batches of 8.
    assert len(heard.batches) == len(rows) // 2 * (5 + 3) == len(set(heard.batches))
    assert not list((out / "cells").iterdir())


def test_one_program_serves_all_cells(home, whole, tmp_path):
    outcome = run_sweep(make_plan(config_of(home, batch_size=9)), tmp_path / "out", watcher=Heard())
    assert outcome.programs == 1 and outcome.rows == 12 * (COUNT + 7) * DRAWS
    # ... and another batch size gives the same numbers, of every example and draw.
    for cell, arrays in examples(tmp_path / "out").items():
        np.testing.assert_allclose(arrays["log_prob"], read_examples(whole[1], cell)["log_prob"], rtol=1e-6)


def test_numbers_are_those_of_evaluate(home, whole):
    """The same noise, so the same numbers, as `starflow evaluate` has for this seed; padding counts nowhere."""
    from starflow_jax.training import load_run

    config, _, params, _ = load_run(home / "run", step=4)
    source = open_source(config.data, "test", flow=config.flow)
    expected = log_probs(params, config.flow, source, jax.random.key(0), draws=DRAWS, batch_size=COUNT)
    bits = BitsPerDim.from_log_probs(expected, 16, 256)
    place = {"step": 4, "data": "inside", "noise": "uniform", "condition": "true"}
    (row,) = [row for row in read_results(whole[1]) if place.items() <= row.items()]
    np.testing.assert_allclose(read_examples(whole[1], row["cell"])["log_prob"], expected.T, rtol=1e-6)
    assert row["bits_per_dim"] == pytest.approx(bits.mean, rel=1e-6)
    assert row["example_error"] == pytest.approx(bits.image_error, rel=1e-4)
    assert row["draw_error"] == pytest.approx(bits.draw_error, rel=1e-3)


def test_stopped_anywhere_and_gone_on_with(home, whole, tmp_path):
    """Stopped after every few batches until it ends: no batch is computed twice, and all is as if never stopped."""
    plan, batches, stops = make_plan(config_of(home)), [], 0
    while True:
        heard = Heard(stop_after=7)
        try:
            run_sweep(plan, tmp_path / "out", watcher=heard)
        except KeyboardInterrupt:
            stops += 1
        batches += heard.batches
        if len(heard.batches) < 7:
            break
    assert stops > 10
    assert len(batches) == len(set(batches)) and set(batches) == set(whole[0].batches)
    assert_identical(tmp_path / "out", whole[1])
    again = Heard()
    outcome = run_sweep(plan, tmp_path / "out", watcher=again)
    assert not again.batches and again.before == outcome.done == outcome.cells and outcome.programs == 0


@pytest.mark.parametrize("tear", ["short", "flipped", "garbage"])
def test_a_torn_record_is_dropped_and_not_counted(home, whole, tmp_path, tear):
    plan, heard = make_plan(config_of(home)), Heard(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, tmp_path / "out", watcher=heard)
    (path,) = (tmp_path / "out" / "cells").iterdir()
    data = bytearray(path.read_bytes())
    if tear == "short":
        data = data[:-5]
    elif tear == "flipped":
        data[-20] ^= 1
    else:
        data += data[:50]
    path.write_bytes(data)
    again = Heard()
    run_sweep(plan, tmp_path / "out", watcher=again)
    lost = 0 if tear == "garbage" else 1
    assert len(again.batches) == len(whole[0].batches) - 3 + lost
    assert_identical(tmp_path / "out", whole[1])


def test_a_half_written_result_is_dropped(whole, tmp_path):
    out = shutil.copytree(whole[1], tmp_path / "out")
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    assert len(read_results(out)) == len(lines) - 1
    results = Results(out)
    assert results.incomplete
    results.repair()
    assert (out / "results.jsonl").read_text() == "".join(lines[:-1])
    with (out / "results.csv").open() as file:
        assert [row["cell"] for row in csv.DictReader(file)] == [json.loads(line)["cell"] for line in lines[:-1]]
    (out / "results.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"results.jsonl line 1 is not a result of a sweep"):
        Results(out)


def test_a_cell_is_known_again_in_another_sweep(home, whole, tmp_path):
    """More noise levels, other names and another batch size leave what is done as it is."""
    out = shutil.copytree(whole[1], tmp_path / "out")
    data = (SweepData("other name"), SweepData("outside", count=7, transform="inverted", role="out"))
    config = config_of(home, noise=(0.1, 0.2, "trained"), data=data, batch_size=16, conditions=("true",))
    heard = Heard()
    outcome = run_sweep(make_plan(config), out, watcher=heard)
    assert outcome.computed == 4 and outcome.done == 2 * 2 * 3 and heard.before == 8
    rows = read_results(out)
    assert {row["sigma"] for row in rows} == {0.0, 0.1, 0.2}
    # They are called what they are called now.
    assert {(row["data"], row["role"]) for row in rows} == {("other name", "in"), ("outside", "out")}
    changed = make_plan(dataclasses.replace(config, seed=1))
    assert not {cell.id for cell in changed.cells} & {row["cell"] for row in Results(out).rows}


def test_every_name_keeps_its_row(home, tmp_path):
    """One run under two names, of which one ends earlier, and data that are called "again", outside: computed once."""
    runs = (SweepRun(str(home / "run"), "A", "newest"), SweepRun(str(home / "run"), "B"))
    data = (SweepData("inside"), SweepData("again", role="out"))
    plan = make_plan(config_of(home, runs=runs, data=data, noise=("uniform",), conditions=("true",)))
    outcome = run_sweep(plan, tmp_path / "out", watcher=Heard())
    assert outcome.cells == outcome.computed == len(plan.cells) == 2 and plan.num_duplicates == 4
    names = [("A", 4), ("B", 2), ("B", 4)]
    for rows in (read_results(tmp_path / "out"), csv.DictReader((tmp_path / "out" / "results.csv").open())):
        found = {(row["run"], int(row["step"]), row["data"], row["role"]) for row in rows}
        assert found == {(*name, data, role) for name in names for data, role in (("inside", "in"), ("again", "out"))}
    # Data against themselves, of the newest checkpoint of each run, too.
    aurocs = write_report(tmp_path / "out")["auroc"]
    assert [(one["run"], one["step"], one["data"], one["auroc"]) for one in aurocs] == [
        (*n, "again", 0.5) for n in names
    ]
    table = (tmp_path / "out" / "report.md").read_text().partition("## Out of distribution\n")[2].partition("## ")[0]
    assert [line.split("|")[1:3] for line in table.splitlines() if "again" in line] == [
        [" run ", " step "],  # "against" is a heading
        [" A   ", "    4 "],
        [" B   ", "    4 "],
    ]


def test_lost_examples_are_noticed_and_computed_again(home, whole, tmp_path):
    out = shutil.copytree(whole[1], tmp_path / "out")
    place = {"step": 4, "data": "inside", "noise": "uniform", "condition": "true"}
    rows = read_results(out)
    (row,) = [row for row in rows if place.items() <= row.items()]
    path = out / "examples" / f"{row['cell']}.npz"
    path.write_bytes(path.read_bytes()[:-40])
    (other,) = [one for one in rows if {**place, "step": 2, "condition": "shuffled"}.items() <= one.items()]
    (out / "examples" / f"{other['cell']}.npz").unlink()
    figures = write_report(out)
    text = (out / "report.md").read_text()
    assert f"examples/{row['cell']}.npz" in text and f"examples/{other['cell']}.npz" in text
    names = [{name: one[name] for name in place} for one in figures["auroc"]]
    assert len(names) == 10 and {**place, "data": "outside"} not in names
    outcome = run_sweep(make_plan(config_of(home)), out, watcher=Heard())
    assert outcome.computed == 2 and outcome.done == 24
    assert_identical(out, whole[1])


def test_other_contents_at_the_same_path_are_another_cell(home, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 1))
    run = shutil.copytree(home / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = str(write_arrays(tmp_path / "data", images))
    (run / "config.json").write_text(json.dumps(config))
    sweep = SweepConfig("test", (SweepRun(str(run), steps="newest"),), noise=("uniform",))
    (before,) = make_plan(sweep).cells
    assert make_plan(sweep).cells[0].id == before.id
    shutil.rmtree(tmp_path / "data")
    images[1] ^= 1  # one image of many, its label and all else the same
    write_arrays(tmp_path / "data", images)
    assert make_plan(sweep).cells[0].id != before.id


@pytest.mark.parametrize("change", [{"cell": []}, {"step": "4"}, {"run": None}])
def test_a_damaged_plan_is_refused_in_a_sentence(whole, tmp_path, change, capsys):
    plan = json.loads((whole[1] / "sweep.json").read_text())
    plan["cells"][0] |= change
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    assert main(["sweep", "--report-only", "--out", str(tmp_path)]) == 2
    assert "sweep.json is not a plan of a sweep" in capsys.readouterr().err


def test_the_table_in_the_terminal(home, whole, tmp_path, capsys):
    out = shutil.copytree(whole[1], tmp_path / "out")
    config = config_of(home, noise=("uniform", 0.3), conditions=("true",), runs=runs_of(home, {"steps": "newest"}))
    capsys.readouterr()
    assert main(["sweep", "--config", config_file(tmp_path / "c.py", config), "--out", str(out)]) == 0
    head, *lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()[:5]]
    assert head[:6] == ["cell", "run", "step", "data", "noise", "condition"] and len(head) == 11
    rows = {(row["data"], row["sigma"]): row for row in read_results(out)}
    for number, line in enumerate(lines, 1):
        row = rows[line[3], 0.0 if line[4] == "uniform" else float(line[4])]
        values = [f"{row[name]:.4f}" for name in ("bits_per_dim", "example_error", "draw_error", "median_bits")]
        assert line[:3] == [f"{number}/4", "run", "4"] and line[5:10] == ["true", *values]
        assert line[10] == ("before" if line[4] == "uniform" else f"{row['tokens_per_second']:.0f}")


def test_a_frozen_model_that_cannot_be_read_fails_its_cells_alone(home, tmp_path, monkeypatch):
    plan, conditions = make_plan(config_of(home, noise=("uniform",), conditions=("true",))), _Sweep._conditions

    def unreadable(sweep, cell):
        if cell.data.role == "out":
            raise OSError("no such device")
        return conditions(sweep, cell)

    monkeypatch.setattr(_Sweep, "_conditions", unreadable)
    heard = Heard()
    assert run_sweep(plan, tmp_path / "out", watcher=heard).done == 2
    assert set(heard.failures.values()) == {"OSError: no such device"}


def test_a_failing_cell_does_not_stop_the_rest(home, whole, tmp_path, capsys):
    run = shutil.copytree(home / "run", tmp_path / "run")
    arrays = run / "checkpoints" / "2" / "params"
    arrays.rename(run / "aside")
    config = dataclasses.replace(config_of(home), runs=(SweepRun(str(run)),))
    argv = ["sweep", "--config", config_file(tmp_path / "c.py", config), "--out", str(tmp_path / "out")]
    assert main([*argv, "--json", str(tmp_path / "figures.json")]) == 3
    printed = capsys.readouterr().out
    assert "12 of 24 cells done" in printed and "failed: run step 2, inside, noise uniform" in printed
    assert "is damaged: it has no params" in (tmp_path / "out" / "report.md").read_text()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["failures"]) == len(figures["cells"]) == 12 and figures["planned"] == 24
    (run / "aside").rename(arrays)
    assert main(argv) == 0
    assert "24 of 24 cells done, 12 of them now" in capsys.readouterr().out
    assert "ailed" not in (tmp_path / "out" / "report.md").read_text()
    assert_identical(tmp_path / "out", whole[1])


def test_a_cell_that_fails_half_way_keeps_what_it_has(home, whole, tmp_path, monkeypatch):
    plan, image = make_plan(config_of(home)), DataSet.image

    def unreadable(data, place, example):
        if data.role == "out" and place > 4:
            raise RuntimeError("the disk is gone")
        return image(data, place, example)

    monkeypatch.setattr(DataSet, "image", unreadable)
    heard = Heard()
    outcome = run_sweep(plan, tmp_path / "out", watcher=heard)
    assert outcome.done == 12 and set(heard.failures.values()) == {"RuntimeError: the disk is gone"}
    monkeypatch.undo()
    again = Heard()
    assert not run_sweep(plan, tmp_path / "out", watcher=again).failures
    assert set(again.batches).isdisjoint(heard.batches)
    assert_identical(tmp_path / "out", whole[1])


def test_the_report_says_what_was_found(whole):
    _, out = whole
    figures = write_report(out)
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    rows = read_results(out)
    for row in rows:
        assert f"{row['bits_per_dim']:.4f}" in text and f"{row['bits_per_dim']:.4f}" in page
    for name in ("steps", "histograms", "roc", "auroc", "terms"):
        assert f"plots/{name}.png" in text and (out / "plots" / f"{name}.png").is_file()
    assert not (out / "plots" / "frames.png").exists() and "<img" in page and "://" not in page
    # AUROC is the share of pairs in which the example from inside has the larger log p.
    for one in figures["auroc"]:
        names = ("step", "noise", "sigma", "condition")
        same = [row for row in rows if all(row[name] == one[name] for name in names)]
        inside, outside = (
            read_examples(out, next(row["cell"] for row in same if row["role"] == role))["log_prob"].mean(axis=1)
            for role in ("in", "out")
        )
        assert one["auroc"] == pytest.approx(np.mean(inside[:, None] > outside[None]))
    assert len(figures["auroc"]) == 12 and len(figures["conditions"]) == 16


def spoiled(out, tmp_path, role=None):
    """A copy of a sweep whose log-likelihoods, of one role or of all, overflow."""
    out = shutil.copytree(out, tmp_path / "spoiled")
    lines = []
    for row in map(json.loads, (out / "results.jsonl").read_text().splitlines()):
        if role in (None, row["role"]):
            arrays = read_examples(out, row["cell"])
            np.savez(out / "examples" / f"{row['cell']}.npz", **{k: np.full_like(v, np.nan) for k, v in arrays.items()})
            row |= dict.fromkeys(("bits_per_dim", "example_error", "draw_error", "median_bits", "prior_bits"))
            row |= {"not_finite": row["examples"] * row["draws"], "logdet_bits": [None] * len(row["logdet_bits"])}
        lines.append(json.dumps(row) + "\n")
    (out / "results.jsonl").write_text("".join(lines))
    return out


@pytest.mark.parametrize("role", [None, "out"])
def test_a_report_of_what_overflows(whole, tmp_path, role):
    out = spoiled(whole[1], tmp_path, role)
    assert main(["sweep", "--report-only", "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    assert "could not be drawn" not in text and "plots/histograms.png" in text


def test_a_picture_that_fails_does_not_lose_the_report(whole, tmp_path, monkeypatch):
    def fails(*_):
        raise IndexError("no such colour")

    monkeypatch.setattr(plots, "plot_terms", fails)
    out = shutil.copytree(whole[1], tmp_path / "out")
    (out / "plots").mkdir(exist_ok=True)
    (out / "plots" / "terms.png").write_bytes(b"old")
    assert main(["sweep", "--report-only", "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    assert "The plot could not be drawn: IndexError: no such colour." in text and "plots/steps.png" in text
    assert "plots/terms.png" not in text and not (out / "plots" / "terms.png").exists()


def test_bfloat16_is_measured_against_float32(home, tmp_path):
    config = config_of(home, dtype="bfloat16", noise=("uniform",), conditions=("true",), data=(SweepData("inside"),))
    swept(config, tmp_path / "out")
    rows = {(row["step"], row["dtype"]): row for row in read_results(tmp_path / "out")}
    assert len(rows) == 4
    for one in write_report(tmp_path / "out")["dtypes"]:
        difference = rows[one["step"], "bfloat16"]["bits_per_dim"] - rows[one["step"], "float32"]["bits_per_dim"]
        assert (
            one["mean"] == pytest.approx(difference, abs=1e-9)
            and 0 < abs(difference) < 0.05
            and one["largest"] >= abs(difference)
        )
    assert "bfloat16 minus float32" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (lambda home: {"runs": (SweepRun("nowhere"),)}, "runs: nowhere contains no training run"),
        (lambda home: {"runs": runs_of(home, {"steps": (3,)})}, "must be among 2, 4, got 3"),
        (lambda home: {"runs": runs_of(home, {}, {})}, "runs must have names that differ"),
        (lambda home: {"data": (SweepData("x", levels=300),)}, "levels must be at most 256, got 300"),
        (lambda home: {"data": (SweepData("x"), SweepData("x"))}, "data must have names that differ, got x again"),
        (lambda home: {"data": missing_data("a", "b")}, "a/test.npz does not exist; data 'b': data file b/test.npz"),
        (lambda home: {"noise": (0.0,)}, "noise must be 'uniform', 'trained' or a finite number above 0, got 0.0"),
        (lambda home: {"conditions": ()}, "conditions must name at least one, got none"),
        (lambda home: {"data": (SweepData("one", count=1),)}, "condition 'shuffled' needs two examples, got 1"),
        (lambda home: {"draws": 0}, "draws must be an integer >= 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(home, changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_plan(dataclasses.replace(config_of(home), **changes(home)))


def test_the_command_refuses_in_a_sentence(home, whole, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    file, new = config_file(tmp_path / "c.py", config_of(home)), str(tmp_path / "new")
    for argv, sentence in (
        (["--config", file, "--out", str(tmp_path / "full")], "must be an empty or a new folder, or that of a sweep"),
        (["--out", new], "--config must name a file, or --report-only be given"),
        (["--report-only", "--out", new], "contains no sweep"),
        (["--report-only", "--config", file, "--out", str(whole[1])], "cannot be combined with --report-only"),
        (["--config", file, "--out", new, "--config.drawz=2"], "did you mean draws?"),
        (["--config", file, "--out", new, "--config.noise=('blue',)"], "noise[0] must be 'uniform' or 'trained' or a"),
    ):
        assert main(["sweep", *argv]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert main(["sweep", "--report-only", "--out", str(whole[1])]) == 0
