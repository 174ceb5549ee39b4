"""Writes the metrics of a run to a CSV file, to TensorBoard event files and to other recorders."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.training.checkpoints.workdir import CSV_FILE, EVENTS_FOLDER

FIELDS = (
    "step",
    "loss",
    "loss_z",
    "loss_logdet",
    "bits_per_dim",
    "grad_norm",
    "learning_rate",
    "skipped",
    "skipped_updates",
    "bad_examples",
    "loss_denoiser",
    "denoiser_grad_norm",
    "denoiser_skipped",
    "images_per_second",
    "data_wait",
    "mfu",
    "held_out_bits_per_dim",
)


class MetricsWriter:
    """Appends rows of scalars to `metrics.csv` (columns `fields`, empty for missing values) and to `events/`.

    Scalars not in `fields` go to the event files only. A context manager.

    Attributes:
      skipped_before: number of updates skipped before `step`; bad_before: number of unreadable examples before `step`.

    Args:
      workdir: an existing folder.
      step: that the run is resumed from; later rows, of an attempt that went beyond its last checkpoint, are dropped.
      enabled: false writes nothing, for all processes of a run but one.
      fields: the columns, starting with "step".
    """

    def __init__(self, workdir: Path, step: int = 0, *, enabled: bool = True, fields: Sequence[str] = FIELDS):
        path = Path(workdir) / CSV_FILE
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        self.skipped_before = _most(rows, "skipped_updates")
        self.bad_before = _most(rows, "bad_examples")
        self._path, self._fields = path, fields
        self._others: list[Callable[[int, Mapping[str, float]], None]] = []
        self._events: SummaryWriter | None = None
        if enabled:
            write_text(path, _csv(fields, [dict.fromkeys(fields) | row for row in rows], header=True))
            folder = str(Path(workdir) / EVENTS_FOLDER)
            self._events = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            self._events.close()

    def also(self, write: Callable[[int, Mapping[str, float]], None]) -> None:
        """Also passes every row to `write`."""
        self._others.append(write)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row; values that are not finite are omitted."""
        if self._events is None:
            return
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        row = {name: value for name, value in finite.items() if name in self._fields}
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv(self._fields, [{"step": step, **row}]))
        for name, value in finite.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        for other in self._others:
            other(step, finite)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv` without empty cells; no rows if there is no file.

    Rows that are truncated, not numeric or of no finite step are omitted, as are all after a cell that no CSV file has.
    """
    if not path.is_file():
        return []
    rows = []
    with path.open(encoding="utf-8", errors="replace", newline="") as file, contextlib.suppress(csv.Error):
        for raw in csv.DictReader(file):
            try:
                row = {name: float(cell) for name, cell in raw.items() if cell}
            except (TypeError, ValueError):
                continue
            if math.isfinite(row.get("step", math.nan)) and None not in raw.values():
                rows.append(row)
    return rows


def _most(rows: Sequence[Mapping[str, float]], name: str) -> int:
    return int(max((row.get(name, 0.0) for row in rows), default=0.0))


def _csv(fields: Sequence[str], rows: Sequence[Mapping[str, float | None]], header: bool = False) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(name, row.get(name)) for name in fields})
    return text.getvalue()


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if name == "step" else f"{value:.7g}"


def average(calls: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Means over the updates of several calls of the compiled program.

    Args:
      calls: metrics of each call, [steps_per_call], NaN where no update was made.

    Returns:
      The mean of every metric over its finite values, NaN if there are none: an update with a NaN loss counts in
      `skipped` only.
    """
    means = {}
    for name in calls[0]:
        values = np.concatenate([np.asarray(call[name], np.float64) for call in calls])
        finite = values[np.isfinite(values)]
        means[name] = float(finite.mean()) if finite.size else math.nan
    return means
