"""Metrics of generated images against guidance: a table, a CSV file and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.atomic_writing import replacing, write_text
from starflow_jax.core.figures import text_table
from starflow_jax.evaluation.samples.metrics.metric import in_table_order, metric_spec

Row = Mapping[str, Any]

_BASELINE_COLOUR = "#777777"


def metric_table(rows: Sequence[Row], baseline: Row | None, metrics: Sequence[str]) -> str:
    """A Markdown table with one row for every guidance.

    Args:
      rows: values of the metrics for every guidance; baseline: real images against real images, in a further row.
      metrics: registered metrics, whose columns are shown.
    """
    columns = []
    for metric in in_table_order(metrics):
        for column in metric_spec(metric).columns:
            columns.append((column.key, column.title, column.format))
            if column.error is not None:
                columns.append((column.error, column.error_title, column.format))
    table: list[tuple[str, ...]] = [("guidance", "images", *(title for _, title, _ in columns))]
    for row in [*rows, *([baseline] if baseline is not None else [])]:
        name = f"{row['guidance']:g}" if "guidance" in row else f"({row['source']})"
        cells = (_format_number(row[key], form) if key in row else "-" for key, _, form in columns)
        table.append((name, str(row["samples"]), *cells))
    return text_table(table)


def _format_number(value: float, form: str) -> str:
    return format(value, form if abs(value) < 1e4 else ".4g")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes the rows as CSV, whole or not at all."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def plot_metrics(path: Path, rows: Sequence[Row], baseline: Row | None, metrics: Sequence[str], title: str) -> None:
    """Plots metrics against guidance as a PNG file, one panel for each; the baseline is a dashed line.

    Args:
      rows, baseline, metrics: as for `metric_table`; title: of the figure.
    """
    # Imported here because importing matplotlib takes a second; this backend needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ordered = sorted(rows, key=lambda row: row["guidance"])
    figure = Figure(figsize=(4.4 * len(metrics), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, in_table_order(metrics), strict=True):
        _plot_metric(axes, ordered, baseline, metric)
    figure.suptitle(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _plot_metric(axes: Any, rows: Sequence[Row], baseline: Row | None, metric: str) -> None:
    spec = metric_spec(metric)
    guidance = [row["guidance"] for row in rows]
    for index, column in enumerate(spec.columns):
        errors = [row[column.error] for row in rows] if column.error is not None else None
        values = [row[column.key] for row in rows]
        axes.errorbar(guidance, values, errors, marker="o", capsize=3, color=f"C{index}", label=column.title)
        if baseline is not None and column.key in baseline:
            colour = _BASELINE_COLOUR if len(spec.columns) == 1 else f"C{index}"
            label = f"{column.title}, {baseline['source']}"
            axes.axhline(baseline[column.key], linestyle="--", color=colour, label=label)
    direction = "" if spec.better is None else f" ({spec.better} is better)"
    axes.set(xlabel="guidance", ylabel=f"{spec.title}{direction}")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.0), high + 0.05 * (high - low))  # the axis includes 0, so that slopes are not exaggerated
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
