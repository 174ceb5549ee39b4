"""A run that is killed at any moment resumes with the same data and ends with the same parameters."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from killed_run import BATCH, STEPS

from starflow_jax.training import load_run

SCRIPT = Path(__file__).parent / "killed_run.py"
LONG = 300.0  # timeout in seconds, generous for a busy machine


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment in which all processes share a compilation cache."""
    return os.environ | {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(SCRIPT.parent.parent),
    }


def start(workdir, environment, seconds=0.0, workers=0, **options):
    command = [sys.executable, str(SCRIPT), str(workdir), str(seconds), str(workers)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, env=environment, text=True, **options)


def finish(workdir, environment):
    process = start(workdir, environment)
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, err
    assert out.split() == [str(STEPS)]


def batches(workdir):
    """The examples of every update, checked to be the same in every attempt."""
    seen = {}
    for line in workdir.with_name(f"{workdir.name}.seen").read_text().splitlines():
        place, *examples = map(int, line.split())
        assert seen.setdefault(place, examples) == examples and len(examples) == BATCH
    return seen


@pytest.fixture(scope="module")
def straight(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("straight") / "run"
    finish(workdir, environment)
    assert sorted(batches(workdir)) == list(range(STEPS))
    return workdir


def assert_same_run(workdir, straight):
    assert batches(workdir) == batches(straight)
    for ema in (False, True):
        (_, _, a, step), (_, _, b, _) = load_run(workdir, ema=ema), load_run(straight, ema=ema)
        assert step == STEPS
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)


def wait_for(process, happened, seconds=LONG):
    """Polls until `happened()` is true; returns its value."""
    end = time.monotonic() + seconds
    while not (value := happened()):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.0005)
    return value


def updates(workdir):
    path = workdir.with_name(f"{workdir.name}.seen")
    return path.read_text().count("\n") if path.exists() else 0


def kill(process):
    process.kill()
    process.communicate()


def half_written(workdir):
    folder = workdir / "checkpoints"
    try:
        return [path for path in folder.iterdir() if "-tmp" in path.name]
    except FileNotFoundError:  # the folder, or an entry that is being renamed
        return []


def stopped_while_saving(process, workdir):
    """Whether the process could be suspended with a half-written save, until it is killed."""
    if not half_written(workdir):
        return False
    process.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)
    if half_written(workdir):
        return True
    process.send_signal(signal.SIGCONT)
    return False


@pytest.mark.slow  # test_training_loop.py resumes after a crash and after signals
def test_killed_between_and_while_saving(straight, tmp_path, environment):
    workdir = tmp_path / "run"
    process = start(workdir, environment, 0.02)
    wait_for(process, lambda: updates(workdir) >= 17)
    kill(process)
    made = updates(workdir)
    process = start(workdir, environment, 0.01)
    wait_for(process, lambda: updates(workdir) > made and stopped_while_saving(process, workdir))
    kill(process)
    assert half_written(workdir)
    assert_whole_checkpoints(workdir)
    finish(workdir, environment)
    assert not half_written(workdir)
    assert_same_run(workdir, straight)


def assert_whole_checkpoints(workdir):
    assert load_run(workdir)[3] % 4 == 0


@pytest.mark.slow  # test_failing_processes.py sends the signal to one of two processes
def test_sigterm_ends_with_a_checkpoint_and_exit_code_0(straight, tmp_path, environment):
    workdir = tmp_path / "run"
    process = start(workdir, environment, 0.02)
    wait_for(process, lambda: updates(workdir) >= 10)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == 0, err
    stopped = int(out)
    assert 10 <= stopped < STEPS and load_run(workdir)[3] == stopped
    assert len(batches(workdir)) == stopped  # every batch that was read was used
    finish(workdir, environment)
    assert_same_run(workdir, straight)


@pytest.mark.slow
def test_workers_may_come_and_go(straight, tmp_path, environment):
    """Killed with two workers, preempted with one, then with two that get the signal too; finished without workers."""
    workdir = tmp_path / "run"
    for workers, more, strike, code in (
        (2, 6, subprocess.Popen.kill, -signal.SIGKILL),
        (1, 10, subprocess.Popen.terminate, 0),
        (2, 10, lambda process: os.killpg(process.pid, signal.SIGTERM), 0),
    ):
        made = updates(workdir)
        # Workers outlive a killed process and would keep its pipes open.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        process = start(workdir, environment, 0.1, workers, **quiet)
        wait_for(process, lambda made=made, more=more: updates(workdir) >= made + more)
        strike(process)
        assert process.wait(timeout=LONG) == code
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    finish(workdir, environment)
    assert_same_run(workdir, straight)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random(straight, tmp_path, environment, seed):
    """Three times each: anywhere from the start of the process to the last update."""
    workdir, rng = tmp_path / "run", random.Random(seed)
    for _ in range(3):
        process = start(workdir, environment, 0.02)
        moment = rng.randrange(STEPS + 1)
        if moment < 3:
            time.sleep(rng.uniform(0, 4))
        else:
            wait_for(process, lambda moment=moment, process=process: updates(workdir) >= moment or process.poll() == 0)
            time.sleep(rng.uniform(0, 0.06))
        kill(process)
    finish(workdir, environment)
    assert_same_run(workdir, straight)
