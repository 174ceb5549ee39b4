"""Optimizers on digits and moving digits: held-out bits/dim after as many updates, and updates to those of AdamW.

    python experiments/benchmarks/optimizers.py --out runs/optimizers --json optimizers.json
    python experiments/benchmarks/optimizers.py --out /tmp/quick --quick     # two updates of tiny models

Every optimizer trains the same network on the same batches, with the learning rates of `CANDIDATES`; the learning rate
with the lowest held-out bits/dim of seed 0 is trained with the other seeds, too. AdamW is the baseline: a table names
the held-out bits/dim at the end (mean and standard error over seeds), the first evaluation at which the mean is at most
that of AdamW at its end, and the time of an update in relation to AdamW's. A run in --out is read, or resumed.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.config import ExperimentConfig, load_config
from starflow_jax.core.figures import text_table, write_json
from starflow_jax.evaluation.likelihood.held_out import held_out_score
from starflow_jax.training import TrainRequest, train

EXPERIMENTS = Path(__file__).parents[1]
# Optimizers with their learning rates as multiples of the experiment's.
CANDIDATES: dict[str, tuple[float, ...]] = {
    "adamw": (0.5, 1.0, 2.0),
    "lion": (0.05, 0.1, 0.2),
    "adafactor": (0.5, 1.0, 2.0),
    "muon": (1.0, 2.0, 4.0),
    "schedule-free": (1.0, 2.0, 4.0),
}
BASELINE = "adamw"


@dataclasses.dataclass(frozen=True)
class Task:
    """An experiment file, its number of updates, and overrides.

    Attributes:
      evaluations: number of evaluations.
    """

    file: str
    updates: int
    overrides: tuple[str, ...] = ()
    evaluations: int = 20


# Clips of four frames from the start and no denoiser: one program to compile for each learning rate.
CLIPS = ("flow.denoiser=None", "sample.denoise=none", "train.curriculum=()", "evaluate.held_out=40", "train.ema=0.99")
TASKS = {
    "digits": Task("digits.py", 2000),
    "moving digits": Task("moving_digits.py", 300, (*CLIPS, "data.frames=4", "train.batch_size=4"), 6),
}
QUICK = {
    "digits": Task("digits.py:tiny", 2, ("train.steps_per_call=1",), 2),
    "moving digits": Task("moving_digits.py:tiny", 2, (*CLIPS, "train.steps_per_call=1"), 2),
}


def experiment(task: Task, optimizer: str, factor: float, seed: int) -> ExperimentConfig:
    """The configuration of one run."""
    path = str(EXPERIMENTS / task.file)
    lr = load_config(path).train.lr * factor
    overrides = [
        f"train.steps={task.updates}",
        f"train.warmup={task.updates // 10}",
        f"train.lr={lr!r}",
        f"train.optimizer.name={optimizer}",
        f"train.evaluate_every={task.updates // task.evaluations}",
        f"train.checkpoint_every={task.updates}",
        f"train.log_every={task.updates // task.evaluations}",
        f"seed={seed}",
    ]
    if optimizer == "schedule-free":
        overrides += ["train.decay=constant", "train.ema=0"]
    return load_config(path, (*task.overrides, *overrides))


def run(config: ExperimentConfig, workdir: Path) -> dict[str, list[float]]:
    """Trains, resumes or reads one run: the evaluated updates, their held-out bits/dim, and the run's seconds."""
    train(TrainRequest(config, workdir, evaluations=[held_out_score(config)], progress=False))
    with (workdir / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("held_out_bits_per_dim")]
    rates = [float(row["images_per_second"]) for row in rows if row.get("images_per_second")]
    return {
        "updates": [float(row["step"]) for row in rows],
        "bits_per_dim": [float(row["held_out_bits_per_dim"]) for row in rows],
        "images_per_second": [float(np.median(rates))] if rates else [],
    }


def measure(tasks: dict[str, Task], candidates: dict[str, tuple[float, ...]], out: Path, seeds: int) -> dict[str, Any]:
    """All runs: task -> optimizer -> learning rates tried on seed 0, the best of them, and the runs of every seed."""
    results: dict[str, Any] = {}
    for name, task in tasks.items():
        results[name] = {}
        for optimizer, factors in candidates.items():

            def one(factor: float, seed: int, name: str = name, task: Task = task, optimizer: str = optimizer) -> Any:
                folder = out / name.replace(" ", "_") / f"{optimizer}-{factor:g}-{seed}"
                print(folder, file=sys.stderr, flush=True)
                return run(experiment(task, optimizer, factor, seed), folder)

            first = {factor: one(factor, 0) for factor in factors}
            best = min(first, key=lambda factor: first[factor]["bits_per_dim"][-1])
            runs = [first[best], *(one(best, seed) for seed in range(1, seeds))]
            tried = {f"{factor:g}": values["bits_per_dim"][-1] for factor, values in first.items()}
            results[name][optimizer] = {"tried": tried, "factor": best, "runs": runs}
    return results


def table(results: dict[str, Any]) -> str:
    """The table of all tasks."""
    header = [
        "task, optimizer",
        "lr / the recipe's",
        "held-out bits/dim",
        "updates to AdamW's end",
        "time of an update",
    ]
    rows = [header]
    for name, optimizers in results.items():
        base = optimizers[BASELINE]
        goal = _curve(base)[-1]
        for optimizer, entry in optimizers.items():
            ends = np.array([one["bits_per_dim"][-1] for one in entry["runs"]])
            error = f" ± {ends.std(ddof=1) / np.sqrt(len(ends)):.4f}" if len(ends) > 1 else ""
            steps = entry["runs"][0]["updates"]
            reached = [int(step) for step, bits in zip(steps, _curve(entry), strict=True) if bits <= goal]
            speed = [_speed(one) for one in (base, entry)]
            rows.append(
                [
                    f"{name}, {optimizer}",
                    f"{entry['factor']:g}",
                    f"{ends.mean():.4f}{error}",
                    str(reached[0]) if reached else "never",
                    f"{speed[0] / speed[1]:.2f}x" if all(speed) else "",
                ]
            )
    return text_table(rows)


def _curve(entry: dict[str, Any]) -> np.ndarray:
    return np.mean([one["bits_per_dim"] for one in entry["runs"]], axis=0)


def _speed(entry: dict[str, Any]) -> float:
    return float(np.median([rate for one in entry["runs"] for rate in one["images_per_second"]] or [0.0]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns an exit code."""
    shown = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shown.add_argument("--out", type=Path, required=True, help="folder of the runs")
    shown.add_argument("--seeds", type=int, default=3, help="seeds of every optimizer (default 3)")
    shown.add_argument("--task", choices=list(TASKS), help="only this task")
    shown.add_argument("--json", type=Path, help="also write the figures as JSON")
    shown.add_argument("--quick", action="store_true", help="two updates of tiny models by two optimizers")
    options = shown.parse_args(arguments)
    tasks = QUICK if options.quick else TASKS
    if options.task is not None:
        tasks = {options.task: tasks[options.task]}
    candidates = {"adamw": (1.0,), "muon": (1.0,)} if options.quick else CANDIDATES
    results = measure(tasks, candidates, options.out, 1 if options.quick else options.seeds)
    print(table(results))
    if options.json is not None:
        write_json(options.json, {"tasks": {name: dataclasses.asdict(task) for name, task in tasks.items()}, **results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
