"""Two hosts without a common disk train in one bucket: killed, resumed on new disks, and with one disk lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from joined_processes import free_port
from storage_servers import BUCKET, command_environment, server, skip_without

pytestmark = pytest.mark.slow

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEPS = 60
EXPERIMENT = ("--config", "experiments/digits.py:tiny", f"--config.train.steps={STEPS}", "--config.train.log_every=10",
              "--config.train.checkpoint_every=20", "--config.train.sample_every=10000",
              "--config.train.keep=2")  # fmt: skip
DIVIDED = ("--config.mesh.data=1", "--config.mesh.fsdp=2")
PARTS = ("params", "opt_state", "ema", "rest", "loader")


class Bucket:
    """A bucket of a server, and hosts with disks of their own that use it."""

    def __init__(self, environment, folder):
        self._environment, self._folder = environment, folder

    def start(self, workdir, *options, disks=("a", "b"), seconds="0.3"):
        """Starts the command on hosts with these disks; returns the processes."""
        port, running = free_port(), []
        for index, disk in enumerate(disks):
            joined = ("--coordinator", f"127.0.0.1:{port}", "--processes", str(len(disks)), "--process", str(index))
            command = ("train", *EXPERIMENT, *options, "--workdir", workdir, "--quiet", *joined)
            environment = command_environment(self._environment, self._folder / disk)
            environment |= {"STARFLOW_STORAGE_SECONDS": seconds}
            running.append(self._run(command, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return running

    def train(self, workdir, *options, **where):
        """Runs the command to its end; returns what each process has printed."""
        running = self.start(workdir, *options, **where)
        texts = [process.communicate(timeout=1800)[0] for process in running]
        assert [process.returncode for process in running] == [0] * len(running), "\n---\n".join(texts)
        return texts

    def sample(self, workdir, disk):
        command = ("sample", "--workdir", workdir, "--num", "2", "--out", str(self._folder / f"{disk}.png"))
        process = self._run(command, command_environment(self._environment, self._folder / disk))
        assert process.wait(timeout=900) == 0

    def _run(self, command, environment, **pipes):
        return subprocess.Popen([sys.executable, "-m", "starflow_jax", *command], cwd=REPOSITORY, env=environment,
                                **pipes)  # fmt: skip

    def names(self, workdir):
        return json.loads(self.read(f"{workdir}/.starflow-files.json") or '{"files": {}}')["files"]

    def read(self, address):
        """The text of an object, "" where there is none; the server does not check the signature."""
        key = "Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        url = f"{self._environment['AWS_ENDPOINT_URL']}/{address.removeprefix('s3://')}"
        request = urllib.request.Request(url, headers={"Authorization": f"AWS4-HMAC-SHA256 {key}"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            return ""

    def digests(self, workdir):
        found = json.loads(self.read(f"{workdir}/checkpoints/{STEPS}/digests/metadata"))
        return {part: found[part] for part in PARTS}


def wait(running, condition):
    for _ in range(6000):
        assert all(process.poll() is None for process in running), [process.communicate()[0] for process in running]
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("it did not happen in time")


def kill(running):
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    skip_without("s3")
    folder = tmp_path_factory.mktemp("hosts")
    with server("s3", folder) as environment:
        yield Bucket(environment, folder)


def undisturbed(bucket, folder, *mesh):
    """The checksums of a run in a local folder that both processes share."""
    bucket.train(str(folder / "run"), *mesh)
    found = json.loads((folder / f"run/checkpoints/{STEPS}/digests/metadata").read_text())
    return {part: found[part] for part in PARTS}


def test_killed_hosts_are_replaced_by_new_ones(bucket, tmp_path):
    workdir = f"s3://{BUCKET}/runs/replaced"
    running = bucket.start(workdir, *DIVIDED)
    wait(running, lambda: any(name.startswith("checkpoints/") for name in bucket.names(workdir)))
    kill(running)
    assert len(bucket.names(workdir)) > 10
    texts = bucket.train(workdir, *DIVIDED, disks=("c", "d"))
    assert f"run: {workdir}" in texts[0] and "run:" not in texts[1]
    assert bucket.digests(workdir) == undisturbed(bucket, tmp_path, *DIVIDED)
    names = bucket.names(workdir)
    assert {"config.json", "metrics.csv", "goodput.json", "curves.png"} <= set(names)
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"40", str(STEPS)}
    kernels = [name for name in names if f"/{STEPS}/params/" in name and "/c/" in name]
    assert any(name.endswith("/c/0/1") or name.endswith("/c/1/0") or name.endswith("/c/0/0/1") for name in kernels)
    bucket.sample(workdir, "e")
    # Another number of hosts, which finds nothing left to do.
    assert "trained for 60 steps already" in bucket.train(workdir, disks=("f",))[0]


def test_a_host_that_lost_its_disk_gets_what_the_other_has(bucket, tmp_path):
    workdir = f"s3://{BUCKET}/runs/peer"
    place = bucket._folder / "g"
    running = bucket.start(workdir, disks=("g", "h"), seconds="3600")
    wait(running, lambda: list(place.glob("work/s3/*/peer/checkpoints/[1-9]*/params/_METADATA")))
    kill(running)
    assert not any(name.startswith("checkpoints/") for name in bucket.names(workdir))
    shutil.rmtree(place)
    texts = bucket.train(workdir, disks=("g", "h"), seconds="3600")
    assert bucket.digests(workdir) == undisturbed(bucket, tmp_path), texts
    attempts = json.loads(bucket.read(f"{workdir}/goodput.json"))["attempts"]
    assert attempts[-1]["first_step"] >= 20  # it has not started again
