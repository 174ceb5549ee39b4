"""A sweep on several devices and processes, killed repeatedly, gives the numbers of an uninterrupted one."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from joined_processes import run_joined
from sweep_runs import (
    TIMES,
    Heard,
    assert_identical,
    config_file,
    config_of,
    runs_of,
    swept,
    two_checkpoints,
)

from starflow_jax.core.config.sweep_config import SweepRun
from starflow_jax.sweeps import make_plan, read_examples, read_results, run_sweep


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return two_checkpoints(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def whole(home):
    """A sweep that nothing stopped: what was heard, and its folder."""
    return swept(config_of(home), home / "whole"), home / "whole"


def assert_close(out, expected, cells=24):
    """Relative 1e-6 of every example, and of the means."""
    found, theirs = ({row["cell"]: row for row in read_results(folder)} for folder in (out, expected))
    assert len(found) == cells
    for cell, row in found.items():
        assert row["bits_per_dim"] == pytest.approx(theirs[cell]["bits_per_dim"], rel=1e-6)
        ours, others = read_examples(out, cell)["log_prob"], read_examples(expected, cell)["log_prob"]
        np.testing.assert_allclose(ours, others, rtol=1e-6)


def command(home, path, out, **changes):
    config = dataclasses.replace(config_of(home), **changes)
    return ["sweep", "--config", config_file(path, config), "--out", str(out)]


@pytest.mark.slow  # test_mesh.py holds eight devices to one
def test_eight_devices_give_the_numbers_of_one(home, whole, tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    fewer = {"noise": ("uniform",), "conditions": ("true",), "runs": runs_of(home, {"steps": "newest"})}
    argv = command(home, tmp_path / "c.py", tmp_path / "out", batch_size=12, **fewer)  # rounded up to 16
    argv = [sys.executable, "-m", "starflow_jax", *argv, "--mesh", "data=4,fsdp=2"]
    run = subprocess.run(argv, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "2 of 2 cells done" in run.stdout
    assert_close(tmp_path / "out", whole[1], cells=2)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(home, whole, tmp_path):
    script = Path(__file__).parent / "command_of_a_process.py"
    argv = command(home, tmp_path / "c.py", tmp_path / "out", batch_size=10)
    found = run_joined(script, tmp_path, 2, *argv, devices=2)
    for code, printed, _ in found:
        assert code == 0, printed[-3000:]
    assert "24 of 24 cells done" in found[0][1] and "cells done" not in found[1][1]
    assert_close(tmp_path / "out", whole[1])


@pytest.mark.slow
def test_two_processes_go_on_and_fail_together(home, whole, tmp_path):
    """One of them stopped before, and one checkpoint is damaged: the others' cells are done, by both."""
    run = shutil.copytree(home / "run", tmp_path / "run")
    config = dataclasses.replace(config_of(home), runs=(SweepRun(str(run)),))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(make_plan(config), tmp_path / "out", watcher=Heard(stop_after=12))
    shutil.rmtree(run / "checkpoints" / "4" / "params")
    script = Path(__file__).parent / "command_of_a_process.py"
    argv = ["sweep", "--config", config_file(tmp_path / "c.py", config), "--out", str(tmp_path / "out")]
    for code, printed, _ in run_joined(script, tmp_path, 2, *argv):
        assert code == 3, printed[-3000:]
    assert len(read_results(tmp_path / "out")) == 12


@pytest.mark.slow
def test_killed_again_and_again(home, whole, tmp_path):
    """kill -9 at random moments, until the sweep ends: the rows are those of one that was left alone."""
    argv = [sys.executable, "-m", "starflow_jax", *command(home, tmp_path / "c.py", tmp_path / "out")]
    rng, kills = np.random.default_rng(0), 0
    for _ in range(30):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        results = tmp_path / "out" / "results.jsonl"
        before = len(results.read_text().splitlines()) if results.exists() else 0
        while process.poll() is None:
            if results.exists() and len(results.read_text().splitlines()) > before:
                time.sleep(float(rng.uniform(0, 0.05)))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        if process.wait() == 0:
            break
        kills += 1
    assert kills >= 3 and process.returncode == 0
    assert_identical(tmp_path / "out", whole[1])
    assert set(TIMES) <= set(read_results(tmp_path / "out")[0])
