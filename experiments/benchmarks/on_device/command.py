"""The command: parses its options, runs every step within the limit of time, and writes after every row."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from starflow_jax.cli.options.outputs import output_file
from starflow_jax.experiments.benchmarks.on_device.child_process import Ended, run_within
from starflow_jax.experiments.benchmarks.on_device.defaults import Default, recommended
from starflow_jax.experiments.benchmarks.on_device.report import Report
from starflow_jax.experiments.benchmarks.on_device.rows import STAGES, Row, Stage, described
from starflow_jax.experiments.benchmarks.on_device.stages import BENCHMARKS, Device, Step, file_name, steps

_MOST_MINUTES = 10_000.0
# Less time than this is not enough to start a process and compile a kernel.
_LEAST_S = 5.0
# The share of the time that the first stage may take, so that a few hanging kernels leave time for the rest.
_FIRST_SHARE = 0.5
_PROBE_S = 120.0
_STATUSES = {"done": "ok"}


@dataclasses.dataclass
class Clock:
    """The time of a run.

    Attributes:
      end: of the run, by `now`; now: seconds that only increase.
    """

    end: float
    now: Callable[[], float] = time.monotonic

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - self.now()


def figures_of(path: Path) -> dict[str, Any] | None:
    """What a process has written, None if nothing that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def row_of(step: Step, ended: Ended, figures: dict[str, Any] | None) -> Row:
    """The row of a step that was run.

    A check states its own status. A process that was stopped may have left figures of what it finished.
    """
    status: str = _STATUSES.get(ended.status, ended.status)
    reason = ended.reason
    if status == "ok" and figures is None:
        status, reason = "error", "it wrote no figures"
    if status == "ok" and step.kind == "check":
        status = str(figures["status"]) if figures is not None and "status" in figures else "error"
    try:
        result = "" if figures is None else described(step.kind, figures)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        status, result = "error", f"its figures are incomplete: {type(error).__name__} {error}"
        figures = None
    if reason:
        result = f"{reason}; finished before: {result}" if result else reason
    row = Row(step.stage, step.name, status, ended.seconds, result, figures)
    return dataclasses.replace(row, tail=ended.tail) if row.failed else row


def run_step(step: Step, rows: Sequence[Row], left: float, folder: Path) -> Row:
    """Runs a step, or says why it is not run."""

    def not_run(reason: str) -> Row:
        return Row(step.stage, step.name, "not run", 0.0, reason)

    stuck = next((row for row in rows if row.status == "stuck"), None)
    if stuck is not None:
        return not_run(f"the process of {stuck.name!r} cannot be ended and may hold the device")
    before = next((row for row in rows if row.stage == step.stage and row.name in step.after), None)
    if before is not None and before.status in ("hang", "crash", "not run"):
        return not_run(f"{before.name!r} ended with {before.status!r}")
    if not step.command:
        return not_run("a check of its kernel was stopped or crashed")
    if left < _LEAST_S:
        return not_run("the limit of time was reached")
    file = folder / file_name(step.stage, step.name)
    ended = run_within([*step.command, "--json", str(file)], min(step.limit_s, left), step.variables)
    row = row_of(step, ended, figures_of(file))
    if row.status == "hang" and left < step.limit_s:
        # Says nothing about the kernel: the run had no time left.
        return dataclasses.replace(
            row, status="not run", result=f"the limit of time was reached; {row.result}", tail=""
        )
    return row


def run_stages(
    report: Report, stages: Iterable[Stage], device: Device, clock: Clock, folder: Path, keep: Callable[[Report], None]
) -> Report:
    """Runs the steps of all stages; `keep` gets the report after every row.

    Args:
      report: without rows.
      stages: which ones.
      device: what they run on.
      clock: until when.
      folder: for the figures of the steps.
      keep: writes the report.
    """
    rows: list[Row] = []
    stages = list(stages)
    for stage in stages:
        others_follow = stage == "correctness" and stage != stages[-1]
        allowed = clock.left() * (_FIRST_SHARE if others_follow else 1.0)
        until = clock.now() + allowed
        for step in steps(stage, device, rows, folder):
            rows.append(run_step(step, rows, until - clock.now(), folder))
            print(f"{rows[-1].status:>11}  {step.stage}: {step.name}: {rows[-1].result}", flush=True)
            keep(dataclasses.replace(report, rows=tuple(rows)))
    return dataclasses.replace(report, rows=tuple(rows), finished=True)


def defaults_of(device: Device, rows: Sequence[Row]) -> list[Default]:
    """The recommended defaults, with the constants of this version."""
    from starflow_jax.costs.chips import topology

    if device.topology is None:
        return recommended(device, rows, math.nan, None, device.attention)
    place = topology(device.topology)
    return recommended(device, rows, place.chip.share, place.peak, device.attention)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends the process with status 2 and one sentence where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="on_device.py", description="Checks, times and tunes every kernel on the GPU or TPU of this machine."
    )
    parser.add_argument("--minutes", type=minutes, default=30.0, metavar="M", help="limit of the run (default 30)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="all figures, written after every row")
    parser.add_argument("--markdown", type=output_file, metavar="FILE", help="the table, written after every row")
    parser.add_argument(
        "--only", choices=STAGES, action="append", metavar="STAGE", help=f"some of the stages: {', '.join(STAGES)}"
    )
    parser.add_argument("--interpret", action="store_true", help="tiny shapes on a CPU, as a test of the command")
    options = parser.parse_args(arguments)
    files = [path.resolve() for path in (options.json, options.markdown) if path is not None]
    if len(set(files)) < len(files):
        parser.error(f"--json and --markdown must name two files, got {options.json} twice")
    return options


def minutes(text: str) -> float:
    """Parses a positive number of minutes."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _MOST_MINUTES:  # NaN, too
        raise argparse.ArgumentTypeError(
            f"must be a number of minutes above 0 and at most {_MOST_MINUTES:g}, got {text!r}"
        )
    return value


def probe(folder: Path, interpreted: bool, limit_s: float) -> dict[str, Any]:
    """What JAX sees of this machine.

    Raises:
      ValueError: it sees no accelerator, or does not answer.
    """
    file = folder / "device.json"
    command = [sys.executable, str(BENCHMARKS / "on_device" / "probe.py"), "--json", str(file)]
    ended = run_within(command, limit_s, {"JAX_PLATFORMS": "cpu"} if interpreted else {})
    found = figures_of(file)
    if found is None:
        reason = ended.reason or "it wrote nothing"
        raise ValueError(
            f"the device must answer within {limit_s:.0f} s, and the process that asks it failed: {reason}"
        )
    if not interpreted and found.get("platform") not in ("gpu", "tpu"):
        raise ValueError(
            f"the device must be a GPU or a TPU, and JAX sees {found.get('platform')} ({found.get('kind')}); "
            "--interpret runs every stage on a CPU"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      0, or 1 where a row says that something is wrong, or 2 for a refusal.
    """
    options = parse(arguments)
    clock = Clock(time.monotonic() + 60.0 * options.minutes)
    # A process that is told to stop ends the process that it waits for.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            found = probe(folder, options.interpret, min(_PROBE_S, clock.left()))
        except ValueError as error:
            print(f"on_device.py: error: {error}", file=sys.stderr)
            return 2
        names = ("platform", "kind", "capability", "attention")
        texts = {name: str(found.get(name, "")) for name in names}
        device = Device(**texts, interpreted=options.interpret)

        def keep(report: Report) -> None:
            report.write(options.json, options.markdown)

        report = Report(found, options.interpret, options.minutes)
        keep(report)
        stages = [stage for stage in STAGES if options.only is None or stage in options.only]
        report = run_stages(report, stages, device, clock, folder, keep)
        report = dataclasses.replace(report, defaults=tuple(defaults_of(device, report.rows)))
        keep(report)
    print(f"\n{report.markdown()}")
    for path in (options.json, options.markdown):
        if path is not None:
            print(f"written: {os.fspath(path)}")
    return int(any(row.failed for row in report.rows))
