"""How long do commands take to start? Times `starflow train` to its first update, `starflow sample` to its picture.

    python experiments/benchmarks/start_up.py --json start.json            # experiments/digits.py, both commands
    python experiments/benchmarks/start_up.py --against OTHER/bin/python   # beside another installed version
    python experiments/benchmarks/start_up.py --quick                      # its tiny variant, one round

Every time is that of a fresh process, from its start until the first row of metrics.csv, or the picture, exists. The
processes take turns: for each command, without kept compiled programs ("off"), with an empty folder of them ("cold")
and with the folder that the cold process has filled ("warm"). The version under test keeps them in its default folder,
below XDG_CACHE_HOME; another version is given JAX_COMPILATION_CACHE_DIR, as its users could set it. The baseline of the
ratios is the other version, "off", or without one this version, "off". One more warm process of each command tells how
much of the time are imports, and how many programs are compiled or read.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.figures import text_table, write_json

EXPERIMENT = Path(__file__).parent.parent / "digits.py"
COMMANDS, STATES = ("train", "sample"), ("off", "cold", "warm")
LIMIT_SECONDS = 600.0
_OF_JAX = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@dataclasses.dataclass(frozen=True)
class Version:
    """An installed version of the package.

    Attributes:
      name: in the table; python: the interpreter that it is installed for; keeps: whether it keeps compiled programs.
    """

    name: str
    python: str
    keeps: bool

    def environment(self, cache: Path | None) -> dict[str, str]:
        """The variables of a process; `cache` is a folder for compiled programs, None for none."""
        variables = {name: value for name, value in os.environ.items() if name not in _OF_JAX}
        if cache is None:
            return variables | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        return variables | {"XDG_CACHE_HOME" if self.keeps else "JAX_COMPILATION_CACHE_DIR": str(cache)}

    def start(
        self, arguments: Sequence[str], log: Path, cache: Path | None, **variables: str
    ) -> subprocess.Popen[bytes]:
        """A process of `starflow`, whose output goes to the file `log`."""
        command = [self.python, "-m", "starflow_jax", *arguments]
        with log.open("wb") as output:
            environment = self.environment(cache) | variables
            return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One version with a trained run to sample from.

    Attributes:
      folder: for its files; experiment: the experiment's file and variant.
    """

    version: Version
    folder: Path
    experiment: str

    def prepare(self) -> None:
        """Trains the run by one update."""
        arguments = [*self._train(self.folder / "run"), "--config.train.steps=1", "--config.train.warmup=0"]
        log = self.folder / "prepare.log"
        _finish(self.version.start(arguments, log, None), log)

    def _train(self, workdir: Path) -> list[str]:
        # The program is that of every run of the experiment; it makes one update before the first row is due.
        config = ["--config", self.experiment, "--config.train.log_every=1"]
        return ["train", *config, "--workdir", str(workdir), "--quiet"]

    def seconds(self, command: str, cache: Path | None, name: str, **variables: str) -> float:
        """The time of one process until its first result."""
        log = self.folder / f"{name}.log"
        if command == "sample":
            result = self.folder / f"{name}.png"
            arguments = ["sample", "--workdir", str(self.folder / "run"), "--num", "4", "--out", str(result)]
            ready: Callable[[], bool] = result.exists
        else:
            result = self.folder / name / "metrics.csv"
            arguments = self._train(result.parent)
            ready = lambda: result.exists() and result.read_text().count("\n") >= 2  # noqa: E731
        begin = time.perf_counter()
        process = self.version.start(arguments, log, cache, **variables)
        try:
            while not ready():
                if process.poll() is not None and not ready():
                    raise SystemExit(f"{command} ended without a result:\n{log.read_text()}")
                if time.perf_counter() - begin > LIMIT_SECONDS:
                    raise SystemExit(f"{command} gave no result in {LIMIT_SECONDS:.0f} s:\n{log.read_text()}")
                time.sleep(0.002)
            seconds = time.perf_counter() - begin
            if command == "train":
                process.send_signal(signal.SIGTERM)  # it saves a checkpoint and ends
            _finish(process, log)
        finally:
            process.kill()
        return seconds

    def account(self, command: str, cache: Path) -> dict[str, float]:
        """The seconds of imports and the number of programs of a process that finds them in `cache`."""
        name = f"{command}-account"
        # Python and JAX write both to standard error.
        self.seconds(command, cache, name, PYTHONPROFILEIMPORTTIME="1", JAX_LOG_COMPILES="1")
        log = (self.folder / f"{name}.log").read_text(errors="replace")
        microseconds = re.findall(r"^import time: +(\d+) \|", log, re.MULTILINE)
        return {"imports": sum(map(int, microseconds)) / 1e6, "programs": log.count("Finished XLA compilation of")}


def _finish(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.wait(LIMIT_SECONDS):
        raise SystemExit(f"a process failed:\n{log.read_text(errors='replace')}")


def measure(versions: Sequence[Measured], rounds: int, states: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each version, command and state, with the seconds of all rounds."""
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for turn in range(rounds):
        for command in COMMANDS:
            for state in states:
                for measured in versions:
                    cache = None if state == "off" else measured.folder / f"cache-{command}-{turn}"
                    took = measured.seconds(command, cache, f"{command}-{state}-{turn}")
                    seconds.setdefault((measured.version.name, command, state), []).append(took)
    first = versions[-1].version.name, states[0]
    lines: list[dict[str, Any]] = []
    for (name, command, state), all_rounds in seconds.items():
        baseline = min(seconds[first[0], command, first[1]])
        best = min(all_rounds)
        lines.append(
            {
                "version": name,
                "command": command,
                "programs kept": state,
                "seconds": best,
                "median": statistics.median(all_rounds),
                "rounds": all_rounds,
                "ratio": baseline / best,
            }
        )
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The results as text."""
    rows = [["command", "version", "programs kept", "seconds", "median", "baseline / this"]]
    for line in sorted(lines, key=lambda line: COMMANDS.index(line["command"])):
        numbers = [f"{line['seconds']:.2f}", f"{line['median']:.2f}", f"{line['ratio']:.2f}"]
        rows.append([line["command"], line["version"], line["programs kept"], *numbers])
    return text_table(rows)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="PYTHON", help="interpreter of another version, the baseline")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind, the fastest counts (default 3)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers there")
    parser.add_argument("--quick", action="store_true", help="the tiny variant, one round, as a test of this script")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be an integer >= 1, got {options.rounds}")
    rounds, states = (1, STATES[1:]) if options.quick else (options.rounds, STATES)
    experiment = str(EXPERIMENT.resolve()) + (":tiny" if options.quick else "")
    versions = [Version("this", sys.executable, True)]
    if options.against:
        versions.append(Version("other", options.against, False))
    with tempfile.TemporaryDirectory(prefix="start-up-") as folder:
        measured = [Measured(version, Path(folder, version.name), experiment) for version in versions]
        for one in measured:
            one.folder.mkdir()
            one.prepare()
        load = os.getloadavg()[0]
        lines = measure(measured, rounds, states)
        accounts = {
            f"{one.version.name}, {command}": one.account(command, one.folder / f"cache-{command}-0")
            for one in measured
            for command in COMMANDS
        }
    print(
        f"{os.cpu_count()} cores, load of others at the start {load:.1f}; baseline: {versions[-1].name}, {states[0]}\n"
    )
    print(table(lines))
    for name, account in accounts.items():
        print(f"{name}, warm: {account['imports']:.2f} s of imports, {account['programs']:.0f} programs")
    if options.json:
        write_json(options.json, {"cores": os.cpu_count(), "load": load, "lines": lines, "accounts": accounts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
