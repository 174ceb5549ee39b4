"""Figures of sample quality for people: a table, a CSV file, and curves against guidance."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.figures import text_table
from starflow_jax.core.files import replacing, write_text

Row = Mapping[str, Any]

# name of a figure, its title, its format
_COLUMNS = (
    ("fid", "FID", ".3f"),
    ("is", "IS", ".3f"),
    ("is_std", "± splits", ".3f"),
    ("kid", "KID", ".5f"),
    ("kid_std", "± subsets", ".5f"),
    ("precision", "precision", ".4f"),
    ("recall", "recall", ".4f"),
    ("clip", "CLIP", ".3f"),
    ("clip_error", "s.e.", ".3f"),
)
_FLOOR = "#777777"


def quality_table(rows: Sequence[Row], floor: Row | None) -> str:
    """A Markdown table: a row each guidance, and `floor`, real pictures against real ones, where there is one."""
    shown = [*rows, *([floor] if floor is not None else [])]
    columns = [column for column in _COLUMNS if any(column[0] in row for row in rows)]
    table: list[tuple[str, ...]] = [("guidance", "pictures", *(title for _, title, _ in columns))]
    for row in shown:
        name = f"{row['guidance']:g}" if "guidance" in row else f"({row['source']})"
        cells = (_shown(row[key], form) if key in row else "-" for key, _, form in columns)
        table.append((name, str(row["samples"]), *cells))
    return text_table(table)


def _shown(value: float, form: str) -> str:
    return format(value, form if abs(value) < 1e4 else ".4g")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """The rows as a table of numbers, whole or not at all."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def plot_quality(path: Path, rows: Sequence[Row], floor: Row | None, title: str) -> None:
    """FID, and what else was measured, against guidance, as a PNG; real pictures against real ones as a broken line."""
    # Here and not above: importing matplotlib takes a second, and this interface needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        ("FID (lower is better)", (("fid", "FID", None),)),
        ("KID (lower is better)", (("kid", "KID", "kid_std"),)),
        ("Inception Score (higher is better)", (("is", "IS", "is_std"),)),
        ("share", (("precision", "precision", None), ("recall", "recall", None))),
        ("CLIP score (higher is better)", (("clip", "CLIP", "clip_error"),)),
    ]
    panels = [panel for panel in panels if any(key in row for row in rows for key, _, _ in panel[1])]
    ordered = sorted(rows, key=lambda row: row["guidance"])
    x = [row["guidance"] for row in ordered]
    figure = Figure(figsize=(4.4 * len(panels), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, (key, name, spread) in enumerate(lines):
            errors = [row[spread] for row in ordered] if spread is not None else None
            axes.errorbar(
                x, [row[key] for row in ordered], errors, marker="o", capsize=3, color=f"C{place}", label=name
            )
            if floor is not None and key in floor:
                colour = _FLOOR if len(lines) == 1 else f"C{place}"
                axes.axhline(floor[key], linestyle="--", color=colour, label=f"{name}, {floor['source']}")
        axes.set(xlabel="guidance", ylabel=label)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0), high + 0.05 * (high - low))  # a curve that looks steep should be steep
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
