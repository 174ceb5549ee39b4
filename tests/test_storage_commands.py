"""Commands from end to end on the servers of two stores: a run that is killed, its resumption, and what reads it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from storage_servers import BUCKET, command_environment, server, skip_without

pytestmark = pytest.mark.slow

EXPERIMENT = ("--config", "experiments/digits.py:tiny", "--config.train.steps=1000", "--config.train.log_every=100",
              "--config.train.checkpoint_every=200", "--config.train.sample_every=10000")  # fmt: skip
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Commands:
    """Runs commands of one machine, whose local copies are in a folder of their own."""

    def __init__(self, store, folder, scheme):
        self.environment = command_environment(store, folder / "copies")
        self.at = f"{scheme}://{BUCKET}"

    def start(self, *argv):
        return subprocess.Popen([sys.executable, "-m", "starflow_jax", *argv], cwd=REPOSITORY, env=self.environment,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip

    def run(self, *argv, code=0):
        process = self.start(*argv)
        text = process.communicate(timeout=1800)[0]
        assert process.returncode == code, text
        assert "copies/" not in text and ":/" + BUCKET not in text  # addresses, and whole ones
        return text

    def store(self):
        code = "import sys, fsspec; sys.stdout.buffer.write(fsspec.open(sys.argv[1], 'rb').open().read())"

        def read(address):
            done = subprocess.run([sys.executable, "-c", code, address], env=self.environment, capture_output=True)
            return done.stdout if done.returncode == 0 else None

        return read


@pytest.fixture(scope="module", params=["s3", "gs"])
def machines(request, tmp_path_factory):
    skip_without(request.param)
    folder = tmp_path_factory.mktemp("machines")
    with server(request.param, folder) as environment:
        (folder / "a").mkdir()
        (folder / "b").mkdir()
        yield [Commands(environment, folder / name, request.param) for name in ("a", "b")]


@pytest.fixture(scope="module")
def trained(machines, tmp_path_factory, request):
    """The address of a run that was killed on one machine and resumed on another, and the folder of an unbroken one."""
    first, second = machines
    address = f"{first.at}/runs/a"
    process = first.start("train", *EXPERIMENT, "--workdir", address, "--quiet")
    request.addfinalizer(process.kill)
    read = first.store()
    for _ in range(600):
        assert process.poll() is None, process.stdout.read()
        names = json.loads(read(f"{address}/.starflow-files.json") or b'{"files": {}}')["files"]
        if any(name.startswith("checkpoints/") for name in names):
            break
        time.sleep(0.2)
    # Another command is refused while it runs.
    refused = second.run("train", *EXPERIMENT, "--workdir", address, "--quiet", code=2)
    assert "is in use by process" in refused and refused.count("\n") == 1
    assert "running: step" in second.run("info", "--workdir", address)
    assert process.poll() is None, "the run must last longer than its first checkpoints"
    process.send_signal(signal.SIGKILL)
    process.wait()
    text = second.run("train", *EXPERIMENT, "--workdir", address, "--json", f"{first.at}/a.json", "--quiet")
    assert f"run: {address}" in text
    folder = tmp_path_factory.mktemp("unbroken") / "a"
    first.run("train", *EXPERIMENT, "--workdir", str(folder), "--quiet")
    return address, folder


def test_the_resumed_run_reaches_the_parameters_of_the_unbroken_one(machines, trained):
    address, folder = trained
    read = machines[0].store()
    digests = json.loads(read(f"{address}/checkpoints/1000/digests/metadata"))
    unbroken = json.loads((folder / "checkpoints/1000/digests/metadata").read_text())
    for part in ("params", "opt_state", "ema", "rest", "loader"):
        assert digests[part] == unbroken[part]
    assert json.loads(read(f"{machines[0].at}/a.json"))["workdir"] == address
    names = json.loads(read(f"{address}/.starflow-files.json"))["files"]
    assert {"config.json", "metrics.csv", "curves.png"} <= set(names)
    assert not [name for name in names if "tmp" in name]
    assert read(f"{address}/.starflow-lease.json") is None


def test_info_and_samples(machines, trained):
    machine, (address, _) = machines[1], trained
    text = machine.run("info", "--workdir", address, "--json", f"{machine.at}/info.json")
    assert "finished: step 1000 of 1000" in text
    information = json.loads(machine.store()(f"{machine.at}/info.json"))
    assert information["workdir"] == address and information["checkpoints"][-1]["bytes"] > 10_000
    out = f"{machine.at}/x.png"
    options = ("--num", "4", "--seed", "3")
    machine.run("sample", "--workdir", address, *options, "--out", out, "--json", f"{machine.at}/x.json")
    assert machine.store()(out).startswith(b"\x89PNG")
    assert json.loads(machine.store()(f"{machine.at}/x.json"))["out"] == out
    machine.run("sample", "--workdir", address, *options, "--out", f"{machine.at}/xs")
    refused = machine.run("sample", "--workdir", address, *options, "--out", f"{machine.at}/xs", code=2)
    assert f"got {machine.at}/xs, a folder that contains files" in refused
    missing = machine.run("sample", "--workdir", f"{address}2", "--out", f"{machine.at}/y.png", code=2)
    assert f"workdir {address}2 contains no training run" in missing


def test_a_sweep_continues_on_another_machine(machines, trained):
    first, second = machines
    address, _ = trained
    options = ("--config", "experiments/sweeps/digits.py:tiny", "--workdir", address, "--out", f"{first.at}/sweep")
    text = first.run("sweep", *options)
    assert "cells done" in text and f"report: {first.at}/sweep/report.html" in text
    again = second.run("sweep", *options, "--json", f"{first.at}/sweep.json")
    assert "0 of them now" in again
    assert second.store()(f"{first.at}/sweep/results.csv").startswith(b"cell,")


def test_latents_are_encoded_and_trained_on(machines):
    first, second = machines
    photos = ("--config", "experiments/photos_latents.py:tiny")
    latents = f"{first.at}/latents"
    encode = ("encode", *photos, "--fit-patch-pca", "2:4", "--fit-images", "32", "--limit", "64", "--out")
    text = first.run(*encode, f"{latents}/train")
    assert f"{latents}/train: 64 latents" in text
    refused = second.run(*encode, f"{latents}/train", code=2)
    assert f"got {latents}/train, a folder that contains files" in refused
    workdir = f"{first.at}/runs/latents"
    options = ("--config.data.source=latents", f"--config.data.path={latents}")
    second.run("train", *photos, *options, "--workdir", workdir, "--quiet")
    first.run("sample", "--workdir", workdir, "--num", "2", "--out", f"{first.at}/l.png")
    assert first.store()(f"{first.at}/l.png").startswith(b"\x89PNG")
