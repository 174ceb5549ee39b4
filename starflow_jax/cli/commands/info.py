"""`starflow info`: the experiment, progress, metrics and checkpoints of a run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.options.outputs import check_writable

ORDER = 20

if TYPE_CHECKING:
    from starflow_jax.core.config import ExperimentConfig

DESCRIPTION = """\
Shows the experiment of a run, its progress, its last and best metrics, and the contents of its checkpoints. Reads no
arrays and uses no accelerator, so it can be called while the run is training."""

EXAMPLES = """\
examples:
  starflow info --workdir runs/digits
  starflow info --workdir runs/digits --json digits.json
"""


def add_to(subparsers: Any) -> None:
    """Declares the command."""
    parser = subparsers.add_parser(
        "info", help="show the progress and the checkpoints of a run", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="folder of a run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns an exit code."""
    if arguments.json is not None:
        check_writable("--json", arguments.json)

    import jax

    jax.config.update(
        "jax_platforms", "cpu"
    )  # counting parameters traces a function; an accelerator may be in use by the run

    from starflow_jax.core.figures import write_json
    from starflow_jax.training.checkpoints.workdir import read_config

    with sentences(read_config):
        config = read_config(arguments.workdir)
    if config is None:
        raise CommandError(f"workdir {arguments.workdir} holds no training run")
    figures = run_figures(arguments.workdir, config)
    print("\n".join(_lines(figures)))
    if arguments.json is not None:
        write_json(arguments.json, figures)
    return 0


def run_figures(workdir: Path, config: ExperimentConfig) -> dict[str, Any]:
    """The figures of a run as plain values; `config` is the one of its config.json."""
    from starflow_jax.flows.parameters import abstract, count
    from starflow_jax.training.checkpoints.inventory import checkpoint_entries
    from starflow_jax.training.checkpoints.workdir import CSV_FILE, is_in_use
    from starflow_jax.training.loop.metrics import read_metrics

    rows = read_metrics(workdir / CSV_FILE)
    entries = checkpoint_entries(workdir, config)
    step = max((entry.step for entry in entries if entry.problem is None and entry.step is not None), default=None)
    reached = max([step or 0, *(int(row["step"]) for row in rows[-1:])])
    if is_in_use(workdir):
        state = "running"
    elif step is None and not rows:
        state = "not begun"
    else:
        state = "finished" if step == config.train.steps else "stopped"
    age = time.time() - (workdir / CSV_FILE).stat().st_mtime if rows else None
    last: dict[str, float] = {}
    for row in rows:  # metrics that are not in every row keep their last value
        last |= row
    return {
        "name": config.name,
        "workdir": str(workdir),
        "family": config.flow.family,
        "parameters": count(abstract(config.flow)[1]),
        "data": config.data.source + (f" {config.data.path}" if config.data.path else ""),
        "state": state,
        "step": step,
        "reached": reached,
        "steps": config.train.steps,
        "seconds_since_last_row": age,
        "metrics": last,
        "best": {name: _best(rows, name) for name in ("bits_per_dim", "held_out_bits_per_dim") if _best(rows, name)},
        "checkpoints": [entry.to_dict() for entry in entries],
    }


def _best(rows: Sequence[Mapping[str, float]], name: str) -> dict[str, float] | None:
    """The lowest value of a metric, and its step."""
    measured = [(row[name], row["step"]) for row in rows if name in row]
    return dict(zip(("value", "step"), min(measured), strict=True)) if measured else None


def _lines(figures: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""
    from starflow_jax.core.figures import text_table

    newest = "no whole checkpoint" if figures["step"] is None else f"newest whole checkpoint {figures['step']}"
    lines = [
        f"{figures['name']}: {figures['family']}, {figures['parameters']:,} parameters, data {figures['data']}",
        f"{figures['state']}: step {figures['reached']} of {figures['steps']}, {newest}",
    ]
    if figures["seconds_since_last_row"] is not None:
        lines[-1] += f", last row {_age(figures['seconds_since_last_row'])} ago"
    if figures["metrics"]:
        values = (f"{name} {value:.6g}" for name, value in figures["metrics"].items() if name != "step")
        lines.append("last: " + ", ".join(values))
    lines += [f"best {name}: {best['value']:.6g} at step {best['step']:.0f}" for name, best in figures["best"].items()]
    if figures["checkpoints"]:
        rows = [("checkpoint", "size", "batches read", "parts", "state")]
        for entry in figures["checkpoints"]:
            rows.append(
                (
                    entry["name"],
                    _size(entry["bytes"]),
                    "-" if entry["batches"] is None else str(entry["batches"]),
                    " ".join(entry["parts"]) or "-",
                    entry["problem"] or ", ".join(["whole", *entry["differences"]]),
                )
            )
        lines += ["", text_table(rows)]
    return lines


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _age(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
