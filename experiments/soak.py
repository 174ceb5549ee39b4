"""Trains on four processes over a fake store while everything goes wrong, and checks that nothing is lost.

    pip install 'starflow_jax[s3,test-stores]'
    python experiments/soak.py --minutes 20 --json soak.json
    python experiments/soak.py --minutes 5 --store folder        # a local folder, without a server

Faults come at random: all processes or one are killed (SIGKILL), one is stopped for seconds (SIGSTOP), one is asked
to end (SIGTERM), the disk of one is full, the newest checkpoint is damaged between two attempts, and connections to the
store are dropped. After the given time the training runs to its end undisturbed. Then

- its parameters, moving average and moments are those of a run that nothing disturbed, bit for bit;
- every update has read the examples of the undisturbed run in every attempt, and those are distinct within an epoch;
- the newest checkpoint has never gone back, except where the newest one was damaged;
- the folder of the run holds the files of that undisturbed run, renamed damaged checkpoints, and nothing else.

The server is moto's, on the loopback address. The exit code is 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.figures import text_table, write_json
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.manifest import read_manifest
from starflow_jax.core.storage.store import open_store
from starflow_jax.experiments.soak_store import BUCKET, FlakyProxy, environment, object_server
from starflow_jax.training.checkpoints.parts import read_digests, steps_in
from starflow_jax.training.checkpoints.workdir import CSV_FILE
from starflow_jax.training.loop.metrics import read_metrics

SCRIPT = Path(__file__).with_name("soak_process.py")
FAULTS = ("kill all", "kill one", "stop", "terminate", "full disk", "damage", "drop connections")
PAUSE = 0.1  # seconds that a disturbed process spends on a batch, so that there is time to strike
LONGEST = 15.0  # seconds from the start of the updates to a fault, at most
EPOCH = 80  # updates within the first epoch: digits has more than 80 x 16 training images
ENDING = 120.0  # seconds that processes have to end by themselves


@dataclasses.dataclass
class Job:
    """The processes of one attempt."""

    processes: list[subprocess.Popen[bytes]]

    def running(self) -> bool:
        """Whether any of them runs."""
        return any(process.poll() is None for process in self.processes)

    def wait(self, seconds: float) -> bool:
        """Waits for all of them; returns whether they have ended."""
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            time.sleep(0.1)
        return not self.running()

    def kill(self) -> None:
        """Kills all of them."""
        for process in self.processes:
            process.kill()
            process.wait()


class Soak:
    """A training that is disturbed.

    Args:
      folder: scratch folder; workdir: folder or address of the run; steps: of the run; count: number of processes.
      environment: variables that lead to the store.
    """

    def __init__(self, folder: Path, workdir: str, steps: int, count: int, environment: dict[str, str]):
        self.folder, self.workdir, self.steps, self.count = folder, workdir, steps, count
        self._environment, self._attempts = environment, 0

    def start(self, pause: float, full_at: int = -1) -> Job:
        """Starts all processes; the disk of the first is full from save `full_at` on."""
        self._attempts += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        command = [
            "train", f"--config={SCRIPT}", f"--workdir={self.workdir}", f"--config.train.steps={self.steps}",
            "--resume=latest-good", "--quiet", f"--coordinator={coordinator}", f"--processes={self.count}",
        ]  # fmt: skip
        processes = []
        for index in range(self.count):
            own = [str(self.folder / f"seen-{index}.txt"), str(pause), str(full_at if index == 0 else -1)]
            log = (self.folder / f"log-{index}.txt").open("ab")
            with log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(SCRIPT), *own, *command, f"--process={index}"],
                        env=self._environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        return Job(processes)

    def lines(self) -> int:
        """Number of batches that the first process has read in all attempts."""
        path = self.folder / "seen-0.txt"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for_updates(self, job: Job, seconds: float = 300.0) -> bool:
        """Waits until the job has read two batches; returns whether it has."""
        before, end = self.lines(), time.monotonic() + seconds
        while self.lines() < before + 2 and job.running() and time.monotonic() < end:
            time.sleep(0.1)
        return self.lines() >= before + 2

    def copy(self, target: Path) -> Path:
        """A local copy of the run."""
        shutil.rmtree(target, ignore_errors=True)
        if "://" not in self.workdir:
            shutil.copytree(self.workdir, target)
            return target
        subprocess.run([sys.executable, "-c", _COPY, self.workdir, str(target)], env=self._environment, check=True)
        return target

    def newest(self) -> int:
        """The newest step of the run, -1 for none."""
        if "://" not in self.workdir:
            return max((-1, *steps_in(Path(self.workdir) / "checkpoints")))
        with _variables(self._environment):
            manifest = read_manifest(open_store(Address.parse(self.workdir)))
        names = {} if manifest is None else manifest.files
        steps = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
        return max((-1, *(int(step) for step in steps if step.isdigit())))

    def damage(self, rng: random.Random) -> bool:
        """Changes a byte of the newest checkpoint's parameters; returns whether there was one."""
        newest = self.newest()
        if newest < 0:
            return False
        with _variables(self._environment):
            files, root = _file_system(self.workdir)
            names = [name for name in files.find(f"{root}/checkpoints/{newest}/params") if files.size(name) > 200]
            if not names:
                return False
            name = max(names, key=files.size)
            data = bytearray(files.cat_file(name))
            data[rng.randrange(100, len(data) - 100)] ^= 0xFF
            files.pipe_file(name, bytes(data))
        return True


# A program that copies a run out of a store.
_COPY = """
import shutil, sys
from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.manifest import read_manifest
from starflow_jax.core.storage.store import open_store
from starflow_jax.core.storage.copies import fetch_copy
from starflow_jax.core.storage.store import open_store
shutil.copytree(fetch_copy(open_store(Address.parse(sys.argv[1]))), sys.argv[2])
"""


@contextlib.contextmanager
def _variables(environment: dict[str, str]) -> Iterator[None]:
    """Sets the variables of a store in this process."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _file_system(workdir: str) -> tuple[Any, str]:
    import fsspec

    if "://" not in workdir:
        return fsspec.filesystem("file"), workdir
    fsspec.config.conf.setdefault("s3", {})["endpoint_url"] = os.environ["AWS_ENDPOINT_URL"]
    return fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False), workdir.partition("://")[2]


def disturb(soak: Soak, job: Job, fault: str, rng: random.Random, proxy: FlakyProxy | None) -> None:
    """Lets one fault happen to a job that makes updates, and waits until the job has ended, or goes on."""
    time.sleep(rng.uniform(0.5, LONGEST))
    victim = rng.choice(job.processes)
    if fault == "kill all":
        job.kill()
    elif fault == "kill one":
        victim.kill()
        if not job.wait(rng.choice((2.0, ENDING))):  # at times as a scheduler does: it kills the rest
            job.kill()
    elif fault == "stop":
        victim.send_signal(signal.SIGSTOP)
        time.sleep(rng.uniform(1.0, 8.0))
        victim.send_signal(signal.SIGCONT)
        time.sleep(2.0)
        job.kill()
    elif fault == "drop connections" and proxy is not None:
        proxy.refuse(rng.uniform(0.5, 4.0))
        time.sleep(6.0)
        job.kill()
    elif fault == "full disk":
        if not job.wait(ENDING):
            job.kill()
    else:  # "terminate", and "damage", which happens afterwards
        victim.terminate()
        if not job.wait(ENDING):
            job.kill()


def run(soak: Soak, minutes: float, rng: random.Random, proxy: FlakyProxy | None) -> tuple[Counter[str], list[str]]:
    """Disturbs the run for so many minutes, then lets it end; returns the faults that happened, and what was wrong."""
    happened: Counter[str] = Counter()
    wrong: list[str] = []
    newest, end = -1, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        # Each fault once before one comes again.
        fault = rng.choice([name for name in FAULTS if happened[name] == min(happened[n] for n in FAULTS)])
        job = soak.start(PAUSE, rng.randrange(1, 4) if fault == "full disk" else -1)
        try:
            if not soak.wait_for_updates(job):
                wrong.append(f"an attempt made no update ({fault}); newest checkpoint {newest}")
                happened[fault] += 1
                continue
            disturb(soak, job, fault, rng, proxy)
        finally:
            job.kill()
        happened[fault] += 1
        found = soak.newest()
        if found < newest:
            wrong.append(f"the newest checkpoint went back from {newest} to {found} ({fault})")
        newest = found
        if fault == "damage" and soak.damage(rng):
            newest = -1
        print(f"{fault}: newest checkpoint {found} of {soak.steps}", file=sys.stderr, flush=True)
        if found >= soak.steps:
            break
    if proxy is not None:
        proxy.calm()
    job = soak.start(0.0)
    if not job.wait(900):
        job.kill()
        wrong.append("the last attempt did not end")
    codes = [process.returncode for process in job.processes]
    if any(codes):
        wrong.append(f"the last attempt ended with the exit codes {codes}")
    return happened, wrong


def compare(disturbed: Path, whole: Path, folder: Path, reference: Path, count: int, steps: int) -> list[str]:
    """What differs between a disturbed run and an undisturbed one: sentences, empty where nothing does.

    Args:
      disturbed, whole: folders of the runs; folder, reference: those with the records of their batches.
    """
    wrong = []
    ours, theirs = (read_digests(run / "checkpoints" / str(steps)) for run in (disturbed, whole))
    for part in ("params", "ema", "opt_state", "rest", "loader"):
        if part not in theirs or ours.get(part) != theirs[part]:
            wrong.append(f"{part} differs after the last update")
    for index in range(count):
        seen, expected = (batches(place / f"seen-{index}.txt") for place in (folder, reference))
        different = [place for place, sums in seen.items() if sums != expected.get(place)]
        if different:
            wrong.append(f"process {index} read other examples at {len(different)} updates, first {different[0]}")
        if set(expected) - set(seen):
            wrong.append(f"process {index} did not read the examples of {len(set(expected) - set(seen))} updates")
        first = [next(iter(expected[place])) for place in sorted(expected)][:EPOCH]
        if len(set(first)) < len(first):
            wrong.append(f"process {index} read examples twice in the first epoch of the undisturbed run")
    if skipped := [row["skipped_updates"] for row in read_metrics(whole / CSV_FILE) if row.get("skipped_updates")]:
        wrong.append(f"{skipped[-1]:.0f} updates of the undisturbed run were skipped, and compare nothing")
    found, files = files_of(disturbed), files_of(whole)
    wrong += [f"the file {name} was left behind" for name in sorted(found - files)[:10]]
    wrong += [f"the file {name} is missing" for name in sorted(files - found)[:10]]
    return wrong


def batches(path: Path) -> dict[int, set[str]]:
    """The checksums of the batches that a process has read, by update; the last line may be cut by a kill."""
    seen: dict[int, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        place, _, value = line.partition(" ")
        if place.isdigit() and value:
            seen.setdefault(int(place), set()).add(value)
    return seen


def files_of(run: Path) -> set[str]:
    """The files of a run, without those of damaged checkpoints, of Orbax's arrays, and records of each attempt."""
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    kept = set()
    for name in names:
        top, _, rest = name.partition("/")
        if top == "events" or name.startswith(".starflow-") or ".damaged" in rest.partition("/")[0]:
            continue
        kept.add("/".join(name.split("/")[:3]) if top == "checkpoints" else name)
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the soak test; returns an exit code."""
    shown = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shown.add_argument("--minutes", type=float, default=20.0, help="time with faults (default 20)")
    shown.add_argument("--processes", type=int, default=4, help="processes of the training (default 4)")
    shown.add_argument("--steps", type=int, help="updates of the training (default: 60 for each minute)")
    shown.add_argument("--store", choices=("s3", "folder"), default="s3", help="where the run is (default s3)")
    shown.add_argument("--seed", type=int, default=0, help="of the faults (default 0)")
    shown.add_argument("--json", type=Path, help="also write the figures as JSON")
    options = shown.parse_args(arguments)
    steps = options.steps or max(40, int(60 * options.minutes))
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        folder, reference = scratch / "disturbed", scratch / "undisturbed"
        for place in (folder, reference):
            place.mkdir()
        common = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "STARFLOW_STORAGE": str(scratch / "copies"),
            "STARFLOW_STORAGE_SECONDS": "1",
        }
        proxy = None
        workdir = str(folder / "run")
        if options.store == "s3":
            port = stack.enter_context(object_server(scratch))
            proxy = stack.enter_context(FlakyProxy(port, 0.02, options.seed))
            common |= environment(proxy.port)
            workdir = f"s3://{BUCKET}/runs/soak"
        whole = Soak(reference, str(reference / "run"), steps, options.processes, common)
        job = whole.start(0.0)
        if not job.wait(1800) or any(process.returncode for process in job.processes):
            job.kill()
            print((reference / "log-0.txt").read_text(errors="replace")[-3000:], file=sys.stderr)
            print("soak: the undisturbed run failed", file=sys.stderr)
            return 1
        soak = Soak(folder, workdir, steps, options.processes, common)
        happened, wrong = run(soak, options.minutes, random.Random(options.seed), proxy)
        if not wrong or "last attempt" not in wrong[-1]:
            copied = soak.copy(scratch / "copied")
            wrong += compare(copied, reference / "run", folder, reference, options.processes, steps)
        elif wrong:
            print((folder / "log-0.txt").read_text(errors="replace")[-3000:], file=sys.stderr)
        figures = {
            "seconds": time.monotonic() - start,
            "steps": steps,
            "processes": options.processes,
            "store": options.store,
            "seed": options.seed,
            "faults": dict(happened),
            "attempts": sum(happened.values()) + 1,
            "dropped_connections": 0 if proxy is None else proxy.dropped,
            "updates_read": soak.lines(),
            "wrong": wrong,
        }
    rows = [("fault", "times"), *((name, str(number)) for name, number in sorted(happened.items()))]
    print(text_table(rows))
    print(f"{figures['attempts']} attempts, {steps} updates, {figures['updates_read']} read by the first process")
    for sentence in wrong:
        print(f"wrong: {sentence}")
    print("nothing was lost" if not wrong else f"{len(wrong)} faults found")
    if options.json is not None:
        write_json(options.json, figures)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
