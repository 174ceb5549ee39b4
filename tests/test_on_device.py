"""The command for the day a device is there: limits of time, the table, the rules, refusals; the whole, interpreted."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from starflow_jax.experiments.benchmarks.on_device import command, stages
from starflow_jax.experiments.benchmarks.on_device.check_kernel import INTERPRETED, judge
from starflow_jax.experiments.benchmarks.on_device.child_process import run_within
from starflow_jax.experiments.benchmarks.on_device.command import Clock, run_stages, run_step
from starflow_jax.experiments.benchmarks.on_device.defaults import recommended
from starflow_jax.experiments.benchmarks.on_device.kernel_grid import UpdateCheck, checks, named
from starflow_jax.experiments.benchmarks.on_device.report import Report, left_out
from starflow_jax.experiments.benchmarks.on_device.rows import Row
from starflow_jax.experiments.benchmarks.on_device.stages import Device, Step
from starflow_jax.flows.affine_head import AffineHead
from starflow_jax.kernels.attention import masks
from starflow_jax.kernels.attention.api import chosen
from starflow_jax.kernels.jacobi_update import api as jacobi_update
from starflow_jax.kernels.jacobi_update.reference import UpdateCall

PYTHON = (sys.executable, "-S", "-E", "-c")
H200 = Device("gpu", "NVIDIA H200", "9.0")


# Processes


def test_a_process_that_ends_is_done_or_states_its_error():
    assert run_within([*PYTHON, "print('x')"], 20).status == "done"
    ended = run_within([*PYTHON, "print('first'); raise ValueError('no kernel here')"], 20)
    assert (ended.status, ended.reason) == ("error", "exit status 1: ValueError: no kernel here")
    assert "first" in ended.tail
    missing = run_within(["/no/such/program"], 20)
    assert missing.status == "error" and "could not be started" in missing.reason
    assert run_within([*PYTHON, "print('y' * 10**6)"], 20).status == "done"  # a full pipe would stop it


def test_a_crash_names_its_signal():
    ended = run_within([*PYTHON, "import os; os.kill(os.getpid(), 11)"], 20)
    assert ended.status == "crash" and "SIGSEGV" in ended.reason


def test_a_hang_is_killed_with_what_it_started(tmp_path):
    """Neither the process, which ignores requests to stop, nor its child survives the limit."""
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child:\n    open(sys.argv[1], 'w').write(f'{os.getpid()} {child}')\n"
        "time.sleep(600)\n"
    )
    start = time.monotonic()
    ended = run_within([*PYTHON, script, str(tmp_path / "pids")], 1.0)
    assert ended.status == "hang" and "after 1 s" in ended.reason and time.monotonic() - start < 15
    for pid in (tmp_path / "pids").read_text().split():
        for _ in range(100):  # the child is reaped by init, some time after it was killed
            state = Path(f"/proc/{pid}/stat")
            if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"process {pid} still runs")


# The grid


@pytest.mark.usefixtures("shapes_unchecked")  # structs in the place of arrays
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("interpreted", [False, True])
def test_every_check_has_a_name_of_its_own_and_a_kernel(platform, interpreted):
    target = INTERPRETED[platform]
    grid = checks(platform, interpreted=interpreted)
    assert len({check.name for check in grid}) == len(grid)
    for check in grid:
        assert named(platform, check.name, interpreted=interpreted) == check
        if isinstance(check, UpdateCheck):
            head = AffineHead(*check.head)
            rows = (head.num_passes * check.samples, check.tokens, 1)
            out = jax.ShapeDtypeStruct(rows, check.dtype)
            x = jax.ShapeDtypeStruct((check.samples, check.tokens, check.channels), "float32")
            assert jacobi_update.kernel_for(target).supports(UpdateCall.from_arrays(out, x, head, target))
            continue
        layers = (2,) if check.cached else ()
        query = jax.ShapeDtypeStruct((check.batch, check.heads, check.queries, check.dim), check.dtype)
        keys = jax.ShapeDtypeStruct((*layers, check.batch, check.kv_heads, check.slots, check.dim), check.dtype)
        rule = getattr(masks, check.rule[0])(*check.rule[1])
        layer = 1 if check.cached else None
        chosen(query, keys, keys, visibility=rule, layer=layer, implementation="pallas", target=target)
    with pytest.raises(ValueError, match="check must be one of: "):
        named(platform, "something else", interpreted=interpreted)


def test_a_result_is_judged_by_every_run():
    expected = [np.asarray([1.0, 200.0])]
    right = [np.asarray([1.0, 200.001])]
    assert judge([right, right], expected, 1e-4)["status"] == "ok"
    later = judge([right, [np.asarray([1.0, 201.0])]], expected, 1e-4)
    assert later["status"] == "wrong" and later["between_runs"] == pytest.approx(5e-3, rel=0.01)
    for bad, reason in (
        ([np.asarray([np.nan, 200.0])], "1 of 2 values are not finite"),
        ([np.zeros(3)], "shape"),
        ([np.asarray([1.0, 200.2])], "the largest error is 1.0e-03"),
    ):
        result = judge([bad], expected, 1e-4)
        assert result["status"] == "wrong" and reason in result["reason"]
    assert judge([right], [np.asarray([1.0, np.nan])], 1e-4)["reason"] == "the reference is not finite"


# The run


def step(name, code, **options):
    return Step("timing", name, "attention", [*PYTHON, code], **{"limit_s": 20.0, **options})


WRITES = "import sys; open(sys.argv[2], 'w').write('{\"shapes\": []}')"


def test_a_hang_a_crash_and_silence_are_rows_and_the_run_goes_on(tmp_path, monkeypatch):
    """Every row is on disk before the next step runs; what was stopped leaves what it had finished."""
    planned = [
        step("first", WRITES),
        step("hangs", f"{WRITES}; import time; sys.stdout.flush(); time.sleep(600)", limit_s=2.0),
        step("crashes", "import os; os.abort()"),
        step("silent", "pass"),
        step("garbage", "import sys; open(sys.argv[2], 'w').write('{\"shapes\": [1]}')"),
        step("needs the one that hangs", WRITES, after=("hangs",)),
        dataclasses.replace(step("its kernel was stopped", ""), command=()),
        step("last", WRITES),
    ]
    monkeypatch.setattr(command, "steps", lambda *_: iter(planned))
    file, table = tmp_path / "new" / "run.json", tmp_path / "run.md"
    seen = []

    def keep(report):
        report.write(file, table)
        written = json.loads(file.read_text())
        seen.append([row["name"] for row in written["rows"]])
        assert not written["finished"] and "**not finished**" in table.read_text()

    report = Report({"kind": "a | b\nc"}, False, 1.0)
    report = run_stages(report, ["timing"], H200, Clock(time.monotonic() + 60), tmp_path, keep)
    assert seen == [[each.name for each in planned[: n + 1]] for n in range(len(planned))]
    assert [row.status for row in report.rows] == [
        "ok", "hang", "crash", "error", "error", "not run", "not run", "ok",
    ]  # fmt: skip
    assert report.rows[1].figures == {"shapes": []} and "stopped after 2 s" in report.rows[1].result
    report.write(file, table)
    text = table.read_text()
    assert "# Kernels on a \\| b c\n" in text and "finished; 2 ok, 1 hang, 1 crash, 2 error, 2 not run" in text
    assert len([line for line in text.splitlines() if line.startswith("| timing")]) == len(planned)
    assert not [path for path in tmp_path.rglob(".*")]  # no temporary file is left


def test_a_run_that_is_interrupted_leaves_its_rows(tmp_path, monkeypatch):
    def interrupted(*_):
        yield step("first", WRITES)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "steps", interrupted)
    file = tmp_path / "run.json"
    with pytest.raises(KeyboardInterrupt):
        run_stages(
            Report({}, False, 1.0), ["timing"], H200, Clock(time.monotonic() + 60), tmp_path,
            lambda report: report.write(file, None),
        )  # fmt: skip
    assert [row["name"] for row in json.loads(file.read_text())["rows"]] == ["first"]


def test_nothing_runs_after_the_time_or_beside_a_process_that_cannot_be_ended(tmp_path, monkeypatch):
    row = run_step(step("late", WRITES), [], 1.0, tmp_path)
    assert (row.status, row.result) == ("not run", "the limit of time was reached")
    monkeypatch.setattr(command, "_LEAST_S", 0.1)
    row = run_step(step("too long for the rest", "import time; time.sleep(600)"), [], 0.5, tmp_path)
    assert row.status == "not run" and not row.failed  # it may not hang
    stuck = Row("correctness", "gpu attention: 5 slots", "stuck", 1.0)
    row = run_step(step("beside", WRITES), [stuck], 100.0, tmp_path)
    assert row.status == "not run" and "may hold the device" in row.result


def test_kernels_that_hang_are_left_out_of_timing_and_tuning(tmp_path):
    def names(rows, stage):
        return {one.name: one for one in stages.steps(stage, H200, rows, tmp_path)}

    first = [*stages.steps("correctness", H200, [], tmp_path)]
    assert all(one.name.startswith("gpu ") and one.limit_s <= 120 for one in first)
    gradients = next(one for one in first if one.name == "gpu attention: 5 slots, gradients")
    assert gradients.after == ("gpu attention: 5 slots",)
    assert all(one.command for stage in ("timing", "tuning") for one in names([], stage).values())
    hung = [Row("correctness", "gpu attention: 5 slots", "hang", 120.0)]
    assert "--without" in names(hung, "timing")["attention, 3B"].command
    assert names(hung, "timing")["Jacobi update"].command
    assert not any(one.command for one in names(hung, "tuning").values())
    hung = [Row("correctness", "gpu jacobi_update: means alone", "crash", 1.0)]
    assert not names(hung, "timing")["Jacobi update"].command
    # A timing that fails is followed by one without the kernel.
    rows: list[Row] = []
    seen = []
    for one in stages.steps("timing", H200, rows, tmp_path):
        seen.append(one.name)
        rows.append(Row("timing", one.name, "hang" if one.name == "attention, 7B" else "ok", 1.0))
    assert seen[:3] == ["attention, 3B", "attention, 7B", "attention, 7B, without the kernel"]
    assert seen.count("attention, heads of 128") == 1


@pytest.mark.parametrize(
    ("kind", "topology"),
    [
        ("NVIDIA H100 80GB HBM3", "h100:1"),
        ("TPU v5 lite", "v5e:1x1"),
        ("TPU v5p", "v5p:1x1x1"),
        ("TPU v6 lite", "v6e:1x1"),
        ("something new", None),
    ],
)
def test_a_device_has_the_topology_of_its_kind(kind, topology):
    assert Device("gpu", kind).topology == topology


# The defaults


def shape(name, backward=True, text=0, **seconds):
    ways = {way: {"seconds": time, "tflops": 1.0} for way, time in seconds.items()}
    return {"name": name, "backward": backward, "text": text, "ways": ways, "missing": {"tokamax": "is not installed"}}


def rows_of(shapes, status="ok", product=800.0):
    timed = Row("timing", "attention, 3B", "ok", 1.0, "", {"shapes": shapes, "product_tflops": product})
    return [Row("correctness", "gpu attention: 5 slots", status, 1.0), timed]


def verdict(rows, name, device=H200):
    found = [one for one in recommended(device, rows, 0.75, 989e12) if one.name.startswith(name)]
    assert len(found) == 1
    return found[0].verdict


def test_a_kernel_becomes_the_default_where_it_is_right_and_nowhere_slower():
    name = "UNTIMED_ON_GPUS (attention)"
    fast = [shape("a", fused=1.0, xla=3.0, cudnn=1.0), shape("b", fused=1.0, xla=2.0)]
    assert verdict(rows_of(fast), name) == "change"
    assert verdict(rows_of([*fast, shape("c", fused=1.0, xla=2.0, cudnn=0.9)]), name) == "keep"
    assert verdict(rows_of(fast, status="wrong"), name) == "keep"
    assert verdict(rows_of(fast, status="hang"), name) == "keep"
    assert verdict(rows_of(fast, status="not run"), name) == "unknown"
    assert verdict(rows_of(fast, status="unsupported"), name) == "unknown"
    assert verdict(rows_of([shape("a", fused=1.0, pytorch=0.1)]), name) == "unknown"  # nothing that JAX could call
    # Shapes with a cache count for decoding alone.
    assert verdict(rows_of([*fast, shape("chunk of 1, cache of 9", fused=9.0, xla=1.0)]), name) == "change"
    assert verdict([], name) == "unknown"
    # A TPU kernel is the default, and loses it where it is wrong or slow.
    tpu = Device("tpu", "TPU v6 lite")
    rows = [dataclasses.replace(row, name=row.name.replace("gpu", "tpu")) for row in rows_of(fast)]
    assert verdict(rows, "the TPU kernel of attention", tpu) == "keep"
    rows[0] = dataclasses.replace(rows[0], status="wrong")
    assert verdict(rows, "the TPU kernel of attention", tpu) == "change"
    assert recommended(dataclasses.replace(tpu, interpreted=True), rows, 0.9, 1.0) == []


def test_the_other_rules():
    rows = rows_of([shape("a", xla=2.0, cudnn=1.0), shape("b", text=4, xla=1.0, cudnn=2.0)])
    assert verdict(rows, "attention of whole causal sequences") == "change"
    assert verdict(rows, "Chip.share") == "change"  # 800 of 989 is 0.81
    assert verdict(rows_of([], product=750.0), "Chip.share") == "keep"
    assert left_out({"torch": True}, rows) == ["tokamax is not installed."]

    def choice(both, chosen=False):
        return {"tiles": {"block_q": 64, "memory": 1}, "chosen": chosen, "both": both}

    def tuned(*choices):
        return [Row("tuning", "1,152 slots", "ok", 1.0, "", {"choices": list(choices)})]

    assert verdict(tuned(choice(1.0, True), choice(0.98)), "block sizes") == "keep"
    assert verdict(tuned(choice(1.0, True), choice(0.9)), "block sizes") == "change"
    assert verdict(tuned({"tiles": {}, "chosen": True, "reason": "registers"}, choice(0.9)), "block sizes") == "change"

    def stepped(hidden, exposed, memory):
        plan = {"time": {"hidden": hidden, "exposed": exposed}, "memory": memory}
        return [Row("steps", "training step", "ok", 1.0, "", {"lines": [{"plan": plan}]})]

    assert verdict(stepped(1.2, 0.8, 1.05), "the plan") == "keep"
    assert verdict(stepped(1.5, 1.2, 1.05), "the plan") == "change"
    assert verdict(stepped(1.2, 0.8, 1.2), "the plan") == "change"


# The command


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--minutes", "0"], "must be a number of minutes above 0 and at most 10000, got '0'"),
        (["--minutes", "nan"], "got 'nan'"),
        (["--only", "everything"], "invalid choice: 'everything'"),
        (["--json", "."], "must name a file, got the folder ."),
        (["--json", "/proc/none/run.json"], "cannot be written"),
        (["--json", "run", "--markdown", "./run"], "--json and --markdown must name two files, got run twice"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options, sentence, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        command.main(options)
    assert refusal.value.code == 2 and sentence in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ('{"platform": "cpu", "kind": "cpu"}', "the device must be a GPU or a TPU, and JAX sees cpu (cpu); --int"),
        ("", "the process that asks it failed: exit status 3"),
    ],
)
def test_a_machine_without_a_device_is_refused_in_a_sentence(found, sentence, capsys, monkeypatch, tmp_path):
    (tmp_path / "on_device").mkdir()
    (tmp_path / "on_device" / "probe.py").write_text(
        f"import sys\nif not {found!r}: sys.exit(3)\nopen(sys.argv[2], 'w').write({found!r})"
    )
    monkeypatch.setattr(command, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    assert command.main(["--json", str(tmp_path / "run.json")]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert not (tmp_path / "run.json").exists()


@pytest.mark.slow
def test_the_whole_command_runs_interpreted(tmp_path):
    """Every stage on a CPU, as the command that a reader types."""
    script = Path(__file__).parents[1] / "experiments" / "on_device.py"
    file, table = tmp_path / "run.json", tmp_path / "run.md"
    options = ["--interpret", "--minutes", "20", "--json", str(file), "--markdown", str(table)]
    ended = run_within([sys.executable, str(script), *options], 1300, {"JAX_PLATFORMS": "cpu", **os.environ})
    assert ended.status == "done", ended.tail
    written = json.loads(file.read_text())
    assert written["finished"] and written["interpreted"] and not written["defaults"]
    statuses = {row["name"]: row["status"] for row in written["rows"]}
    lowered = {name for name, status in statuses.items() if status == "lowered"}
    assert set(statuses.values()) == {"ok", "lowered"}, ended.tail
    assert lowered and all(name.startswith(("gpu attention", "gpu decoding")) for name in lowered)
    assert {row["stage"] for row in written["rows"]} == {"correctness", "timing", "steps", "tuning"}
    step = next(row for row in written["rows"] if row["name"].startswith("training step"))
    assert step["figures"]["lines"][0]["plan"]["time"]["hidden"] > 0
    text = table.read_text()
    assert "none of its times is one of an accelerator" in text and "tokamax is not installed." in text
