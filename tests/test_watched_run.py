"""What watches a training from outside its loop: goodput, the metrics port, the watchdog, the supervisor."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from killed_run import CONFIG, numbered_images

from starflow_jax.cli.options.stored import StoredOption
from starflow_jax.cli.supervisor import newest_step, supervise, supervised
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.manifest import MANIFEST, File, Manifest
from starflow_jax.core.storage.store import open_store
from starflow_jax.training import TrainRequest, train
from starflow_jax.training.loop.goodput import (
    GOODPUT_FILE,
    Attempt,
    Goodput,
    GoodputRecord,
    TimeAccount,
    duration,
    read_goodput,
)
from starflow_jax.training.loop.live_status import LiveStatus
from starflow_jax.training.loop.metrics_server import LOOPBACK, MetricsServer
from starflow_jax.training.loop.watchdog import HUNG, Watchdog
from starflow_jax.training.run_info import InfoRequest, run_info


class Clock:
    """A clock that stands still unless it is moved."""

    now = 0.0

    def __call__(self):
        return self.now


def test_a_phase_within_another_takes_its_time_from_it():
    clock = Clock()
    account = TimeAccount(clock)
    clock.now = 2
    account.enter("step")
    clock.now = 5
    with account.within("save"):
        clock.now = 9
    clock.now = 10
    seconds = account.seconds()
    assert (seconds["start"], seconds["step"], seconds["save"]) == (2, 4, 4)
    assert account.phase == "step" and account.since_change == 1


def attempt(first, last, **seconds):
    return Attempt(first, last, 0.0, 0.0, {"step": 0.0, **seconds})


def test_updates_that_are_made_again_are_lost():
    goodput = Goodput((attempt(0, 100, step=50.0, compile=30.0), attempt(60, 200, step=70.0, save=50.0)))
    assert goodput.lost == pytest.approx(20.0)  # 40 of 100 updates
    assert goodput.share == pytest.approx(100 / 200)
    rows = dict(goodput.rows())
    assert rows["goodput"] == "50.0 % of 0:03:20 in 2 attempts"
    assert rows["updates made again after a restart (part of the updates)"] == "20.0 s, 10.0 %"
    assert Goodput((attempt(0, 100, step=50.0), attempt(100, 200, step=50.0))).share == 1.0
    # The last attempt goes back behind the start of the second: the newest checkpoint was damaged.
    assert Goodput((attempt(0, 100, step=50.0), attempt(90, 91), attempt(50, 100))).lost == pytest.approx(25.0)
    assert Goodput((attempt(0, 0),)).share == 0.0


def test_durations():
    assert [duration(s) for s in (0.04, 59.94, 60, 3661.6)] == ["0.0 s", "59.9 s", "0:01:00", "1:01:02"]


def test_attempts_are_added_to_those_in_the_folder(tmp_path):
    for first, last in ((0, 7), (5, 9)):
        GoodputRecord(tmp_path, TimeAccount(), first).write(last)
    found = read_goodput(tmp_path)
    assert [(one.first_step, one.last_step) for one in found.attempts] == [(0, 7), (5, 9)]
    GoodputRecord(tmp_path, TimeAccount(), 9, enabled=False).write(12)
    assert len(read_goodput(tmp_path).attempts) == 2


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"attempts": [{"first_step": 1}]}', '{"attempts": [3]}'])
def test_a_damaged_account_is_none(tmp_path, text):
    (tmp_path / GOODPUT_FILE).write_text(text)
    assert read_goodput(tmp_path) is None


def status(tmp_path, clock):
    account = TimeAccount(clock)
    account.enter("step")
    return LiveStatus(100, 0, account, GoodputRecord(tmp_path, account, 0, enabled=False), clock)


def test_figures_of_a_running_training(tmp_path):
    clock = Clock()
    live = status(tmp_path, clock)
    for step in (10, 20, 30):
        clock.now += 5 if step > 10 else 60  # the first updates compile
        live.measured(step, {"loss": 1.0, "mfu": float("nan")})
    live.save_begun(30)
    assert "checkpoint_step" not in live.figures()  # it is being written
    live.save_finished()
    live.evaluated({"held_out_bits_per_dim": 2.5})
    clock.now += 2
    figures = live.figures()
    assert live.row_seconds == 5 and figures["seconds_left"] == pytest.approx(35)
    assert figures["checkpoint_age_seconds"] == 2 and figures["checkpoint_step"] == 30
    assert figures["step"] == 30 and figures["loss"] == 1.0 and "mfu" not in figures
    assert figures["goodput"] == 1.0 and figures["held_out_bits_per_dim"] == 2.5


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_prometheus_text_and_health(tmp_path):
    well = threading.Event()
    options = {"figures": lambda: {"step": 3.0, "odd_metric": 0.5}, "seconds": lambda: {"step": 1.5}}
    with MetricsServer(LOOPBACK, 0, run='a "run"\n', healthy=well.is_set, **options) as server:
        code, text = get(server.port, "/metrics")
        assert code == 200 and 'starflow_step{run="a \\"run\\"\\n"} 3.0' in text
        assert 'starflow_phase_seconds{phase="step",run="a ' in text
        assert "# HELP starflow_odd_metric Metric odd_metric." in text
        assert get(server.port, "/healthz") == (503, "no progress\n")
        well.set()
        assert get(server.port, "/healthz?verbose")[0] == 200
        assert get(server.port, "/../etc/passwd")[0] == 404
        with pytest.raises(ValueError, match=f"metrics port {server.port} of 127.0.0.1 cannot be opened"):
            MetricsServer(LOOPBACK, server.port, run="", healthy=well.is_set, **options)


def watchdog(live, tmp_path, **options):
    left = []
    options = {"after": None, "factor": 0.0, "process": 2, "interval": 0.01, **options}
    return Watchdog(live, tmp_path, leave=left.append, **options), left


def test_a_hang_leaves_the_stacks_of_all_threads(tmp_path, capsys):
    live = status(tmp_path, time.monotonic)
    dog, left = watchdog(live, tmp_path, after=0.05)
    with dog:
        for _ in range(500):
            if left:
                break
            time.sleep(0.01)
    assert left == [HUNG]
    (path,) = (tmp_path / "hangs").iterdir()
    text = path.read_text()
    assert path.name.endswith("-process-2.txt") and "test_a_hang_leaves_the_stacks" in text
    assert "made no progress for 0 s (limit 0 s), after step 0 in the phase 'step'" in capsys.readouterr().err


def test_a_report_that_fails_does_not_keep_the_process(tmp_path, monkeypatch):
    live = status(tmp_path, time.monotonic)
    dog, left = watchdog(live, tmp_path / "file" / "is none", after=0.05)
    (tmp_path / "file").touch()  # so that the folder of the stacks cannot be made
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    with dog:
        for _ in range(500):
            if left:
                break
            time.sleep(0.01)
    assert left == [HUNG]


def test_progress_keeps_the_watchdog_quiet(tmp_path):
    live = status(tmp_path, time.monotonic)
    dog, left = watchdog(live, tmp_path, after=0.5)
    with dog:
        for _ in range(80):
            with live.account.within("data"):
                time.sleep(0.01)
    assert not left and not (tmp_path / "hangs").exists()


def test_only_updates_and_data_are_timed_against_the_median(tmp_path):
    clock = Clock()
    live = status(tmp_path, clock)
    dog, _ = watchdog(live, tmp_path, factor=30.0)
    assert dog.limit() is None and dog.is_well()  # no row yet
    for step in (10, 20, 30):
        clock.now += 100
        live.measured(step, {})
    assert dog.limit() == 600  # twice a row and 30 updates of 10 s would be 500
    for step in (40, 50):
        clock.now += 1000
        live.measured(step, {})
    assert dog.limit() == 2 * 1000 / 2 + 2 * 100 / 2 + 30 * 55
    clock.now += 5001
    assert not dog.is_well()
    with live.account.within("save"):
        assert dog.limit() is None and dog.is_well()
    assert watchdog(live, tmp_path)[0].limit() is None  # factor 0
    for step in range(40, 800, 10):
        clock.now += 1
        live.measured(step, {})
    assert dog.limit() == 600


def script(tmp_path, body):
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(body))
    return [sys.executable, str(path), str(tmp_path)]


FAILING = """
    import os, pathlib, sys
    folder = pathlib.Path(sys.argv[1])
    count = folder / "count"
    number = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(number))
"""


def test_a_run_that_fails_is_started_again_until_it_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    ends = "    if number == 3: sys.exit(0)\n    os.kill(os.getpid(), 9) if number == 1 else sys.exit(75)\n"
    assert supervise(script(tmp_path, FAILING + ends), tmp_path, 5) == 0
    printed = capsys.readouterr().err
    assert "ended with signal SIGKILL; starting again" in printed and "ended with exit code 75; starting" in printed
    assert (tmp_path / "count").read_text() == "3"


@pytest.mark.parametrize(
    ("end", "code", "calls"), [("sys.exit(2)", 2, 1), ("sys.exit(130)", 130, 1), ("sys.exit(1)", 1, 3)]
)
def test_what_cannot_be_helped_ends(tmp_path, monkeypatch, end, code, calls):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert supervise(script(tmp_path, f"{FAILING}    {end}\n"), tmp_path, 2) == code
    assert (tmp_path / "count").read_text() == str(calls)


def test_checkpoints_count_as_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    saves = "    (folder / 'checkpoints' / str(number)).mkdir(parents=True)\n    sys.exit(1 if number < 6 else 0)\n"
    assert supervise(script(tmp_path, FAILING + saves), tmp_path, 1) == 0
    assert newest_step(tmp_path) == 6 and newest_step(tmp_path / "none") is None


def test_checkpoints_in_a_store_count_too():
    address = Address.parse("memory://runs/supervised")
    assert newest_step(StoredOption(address, "work")) is None
    names = ["config.json", "checkpoints/8/params/x", "checkpoints/12/params/x"]
    manifest = Manifest({name: File(1, 2, 3) for name in names})
    open_store(address).write(MANIFEST, manifest.to_json())
    assert newest_step(StoredOption(address, "work")) == 12


def test_sigterm_is_passed_on(tmp_path):
    waits = """
    import signal, time
    signal.signal(15, lambda *_: sys.exit(0))
    print("ready", flush=True)
    time.sleep(60)
"""
    code = "import sys; from starflow_jax.cli.supervisor import *; sys.exit(supervise(sys.argv[2:], sys.argv[1], 3))"
    command = [sys.executable, "-c", code, str(tmp_path), *script(tmp_path, FAILING + waits)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    assert (tmp_path / "count").read_text() == "1"


def test_ctrl_c_reaches_the_process_once(tmp_path):
    counts = """
    import signal, time
    received = []
    signal.signal(2, lambda *_: received.append(1))
    print("ready", flush=True)
    while not received: time.sleep(0.05)
    time.sleep(0.5)
    sys.exit(len(received) + 40)
"""
    code = "import sys; from starflow_jax.cli.supervisor import *; sys.exit(supervise(sys.argv[2:], sys.argv[1], 3))"
    command = [sys.executable, "-c", code, str(tmp_path), *script(tmp_path, FAILING + counts)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(30) == 41
    process.stdout.close()


def test_the_option_is_left_out_of_the_supervised_command():
    command = supervised(["train", "--supervise", "3", "--workdir", "runs/a", "--supervise=4", "--quiet"])
    assert command[1:] == ["-m", "starflow_jax", "train", "--workdir", "runs/a", "--quiet"]


def test_a_training_answers_while_it_runs_and_leaves_its_account(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=10, sample_every=5))
    answers = []
    ports = []
    opened = MetricsServer.__enter__

    def enter(self):
        ports.append(self.port)
        return opened(self)

    def ask(snapshot):
        answers.append((get(ports[0], "/metrics")[1], get(ports[0], "/healthz")[0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsServer, "__enter__", enter)
        request = TrainRequest(config, tmp_path / "run", source=numbered_images(), callbacks=[ask], metrics_port=0)
        train(request)
    assert f"figures are served on port {ports[0]} of 127.0.0.1" in capsys.readouterr().err
    text, health = answers[-1]
    assert health == 200 and 'starflow_step{run="killed"} 10.0' in text and "starflow_checkpoint_step" in text
    with pytest.raises(urllib.error.URLError):
        get(ports[0], "/metrics")
    goodput = read_goodput(tmp_path / "run")
    assert goodput.attempts[0].last_step == 10
    assert all(
        goodput.seconds[phase] > 0 for phase in ("start", "restore", "compile", "step", "data", "save", "callback")
    )
    info = run_info(InfoRequest(tmp_path / "run"))
    assert info["goodput"]["attempts"] == 1 and json.dumps(info["goodput"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"metrics_port": 65536}, "metrics_port must be an integer <= 65535, got 65536"),
        ({"profiler_port": 1234}, "profiler_port needs listen '0.0.0.0' or '::', as .* got '127.0.0.1'"),
        ({"listen": "localhost"}, "listen must be an IP address such as '127.0.0.1' or '::', got 'localhost'"),
        ({"hang_after": 0.5}, "hang_after must be a finite number >= 1, got 0.5"),
        ({"hang_factor": -1.0}, "hang_factor must be a finite number >= 0, got -1.0"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainRequest(CONFIG, Path("new"), **fields)


HANGING = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from killed_run import CONFIG, numbered_images
    from starflow_jax.training import TrainRequest, train

    def a_callback_that_hangs(snapshot):
        time.sleep(600)

    import dataclasses
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, sample_every=20))
    request = TrainRequest(config, Path(sys.argv[2]), source=numbered_images(), callbacks=[a_callback_that_hangs],
                           progress=False, hang_after=20.0)
    train(request)
"""


@pytest.mark.slow
def test_a_process_that_hangs_exits_with_its_own_code_and_resumes(tmp_path):
    path = tmp_path / "hanging.py"
    path.write_text(textwrap.dedent(HANGING))
    command = [sys.executable, str(path), str(Path(__file__).parent), str(tmp_path / "run")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == HUNG and "in the phase 'callback'" in run.stderr
    (stacks,) = (tmp_path / "run" / "hangs").iterdir()
    assert "a_callback_that_hangs" in stacks.read_text()
    assert newest_step(tmp_path / "run") == 16
    result = train(TrainRequest(CONFIG, tmp_path / "run", source=numbered_images(), progress=False))
    assert result.step == CONFIG.train.steps
    goodput = read_goodput(tmp_path / "run")
    assert [one.first_step for one in goodput.attempts] == [0, 16] and goodput.lost > 0
