"""`report.md` and `report.html` of a sweep: its tables and plots, from the files of its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing, write_text
from starflow_jax.core.figures import text_table
from starflow_jax.core.html_page import escaped, html_page, html_picture, html_table
from starflow_jax.sweeps import sweep_plots as plots
from starflow_jax.sweeps.results import EXAMPLES_FOLDER, read_plan, read_results
from starflow_jax.sweeps.separation import (
    Difference,
    Row,
    Separation,
    differences,
    in_unit,
    read_scores,
    row_key,
    separations,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS_FOLDER = "plots"
Table = Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and a paragraph, with an optional table and plot (a file in `plots/`)."""

    title: str
    text: str
    table: Table | None = None
    picture: str | None = None


@dataclasses.dataclass(frozen=True)
class PlotResult:
    """The outcome of a plot: written, failed with a message, or without data."""

    written: bool = False
    failed: str = ""


NO_PLOT = PlotResult()


def write_report(out: Path | str, failures: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Writes the plots and the report of a sweep.

    Args:
      out: folder of the sweep; failures: messages of cells that failed, by name.

    Returns:
      The results as plain values: `cells` (rows of results.jsonl), `auroc`, `conditions`, `dtypes`, `failures`.

    Raises:
      ValueError: no sweep in the folder.
    """
    out = Path(out)
    plan, rows = read_plan(out), read_results(out)
    failures = dict(failures or {})
    compared = _compared(out, rows)
    separated, by_condition, by_dtype = compared.separated, compared.by_condition, compared.by_dtype
    examples = compared.examples
    palette = plots.data_colours(rows)
    bins = int(plan["config"].get("histogram_bins", 40))
    figures: dict[str, Callable[[], Figure | None]] = {
        "steps": lambda: plots.plot_steps(rows, palette),
        "noise": lambda: plots.plot_noise(rows, palette),
        "sizes": lambda: plots.plot_sizes(rows, palette),
        "frames": lambda: plots.plot_frames(rows, palette),
        "terms": lambda: plots.plot_terms(rows, palette),
        "histograms": lambda: plots.plot_histograms(rows, palette, examples, bins),
        "roc": lambda: plots.plot_roc(separated, palette),
        "auroc": lambda: plots.plot_auroc(separated, palette),
    }
    plotted = {name: _draw(out / PLOTS_FOLDER / f"{name}.png", draw) for name, draw in figures.items()}
    sections = _sections(plan, rows, compared, failures, plotted)
    title = f"Sweep {plan['config'].get('name', '')}".strip()
    write_text(out / "report.md", _markdown(title, sections))
    write_text(out / "report.html", _page(title, sections, out))
    return {
        "name": plan["config"].get("name"),
        "planned": len(plan["cells"]),
        "cells": rows,
        "auroc": [
            {**_key(one.row), "inside": list(one.inside), "auroc": one.auroc.area, "auroc_error": one.auroc.error}
            for one in separated
        ],
        "conditions": [_difference_values(one) for one in by_condition],
        "dtypes": [_difference_values(one) for one in by_dtype],
        "failures": failures,
    }


def _sections(
    plan: Mapping[str, Any],
    rows: Sequence[Row],
    compared: _Compared,
    failures: Mapping[str, str],
    plotted: Mapping[str, PlotResult],
) -> list[Section]:
    """The sections of the report in order, without those for which the sweep has no data."""

    def section(name: str, title: str, text: str, table: Table | None = None) -> Section:
        failed = plotted[name].failed
        note = f"The plot could not be drawn: {failed}." if failed else ""
        return Section(title, f"{text} {note}".strip(), table, name if plotted[name].written else None)

    done = f"{len(rows)} of {len(plan['cells'])} cells are done."
    missing = len(plan["cells"]) - len(rows)
    sections = [Section("Progress", done + (f" {len(failures)} failed." if failures else ""))]
    if failures:
        table = [("cell", "error"), *failures.items()]
        sections.append(Section("Failed cells", "The same command tries them again.", table))
    elif missing:
        sections.append(
            Section("Unfinished cells", f"{missing} cells are missing; the same command continues with them.")
        )
    if compared.lost:
        sections.append(
            Section("Unreadable examples", _LOST, [(*_LABELS, "file"), *(_lost(row) for row in compared.lost)])
        )
    for name, title, text in (
        ("steps", "Against the step", "Error bars: standard errors over examples."),
        ("noise", "Against the noise", _NOISE),
        ("sizes", "Against model size", "Newest checkpoint of every run, data in distribution."),
        ("frames", "Frame by frame", "Bits of a frame given those before it, newest checkpoints; exact."),
        (
            "histograms",
            "Examples",
            "Newest checkpoints; draws of the noise averaged; tails are collected in the outermost bins.",
        ),
    ):
        if plotted[name] != NO_PLOT:
            sections.append(section(name, title, text))
    separated, by_condition, by_dtype = compared.separated, compared.by_condition, compared.by_dtype
    if separated:
        sections.append(section("roc", "Out of distribution", _ROC, _auroc_table(separated)))
        if plotted["auroc"] != NO_PLOT:
            sections.append(section("auroc", "Out of distribution against the step", ""))
    last = {row_key(row) for row in plots.newest(rows)}
    by_condition = [one for one in by_condition if row_key(one.row) in last]
    if by_condition:
        text = "Difference in bits from the true condition, over the same examples and noise; newest checkpoints."
        sections.append(Section("Conditions", text, _difference_table(by_condition)))
    if by_dtype:
        text = "bfloat16 minus float32, over the same examples and noise."
        sections.append(Section("bfloat16 against float32", text, _difference_table(by_dtype)))
    if rows:
        sections.append(section("terms", "Contributions to bits/dim", _TERMS, _terms_table(rows)))
        sections.append(Section("All cells", _CELLS, _cells_table(rows)))
    return sections


@dataclasses.dataclass(frozen=True, eq=False)
class _Compared:
    """Comparisons of cells by their examples, bits of the examples of the newest checkpoints, and lost files."""

    separated: list[Separation]
    by_condition: list[Difference]
    by_dtype: list[Difference]
    examples: dict[str, np.ndarray]
    lost: list[Row]


def _compared(out: Path, rows: Sequence[Row]) -> _Compared:
    """Reads the examples of one checkpoint at a time: only its cells are compared, and memory is limited."""
    compared = _Compared([], [], [], {}, [])
    newest = {(row["run"], row["step"]) for row in plots.newest(rows)}
    checkpoints: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        checkpoints.setdefault((row["run"], row["step"]), []).append(row)
    for checkpoint, checkpoint_rows in checkpoints.items():
        scores = read_scores(out, checkpoint_rows)
        compared.separated.extend(separations(checkpoint_rows, scores))
        compared.by_condition.extend(differences(checkpoint_rows, scores, "condition", "true"))
        compared.by_dtype.extend(differences(checkpoint_rows, scores, "dtype", "float32"))
        compared.lost.extend(row for row in checkpoint_rows if row["cell"] not in scores)
        if checkpoint in newest:
            compared.examples.update(
                {row["cell"]: in_unit(row, scores[row["cell"]]) for row in checkpoint_rows if row["cell"] in scores}
            )
    return compared


_LOST = (
    "The examples of these rows cannot be read; comparisons that need them are omitted. `starflow sweep` without "
    "--report-only computes these cells again."
)
_NOISE = (
    "Newest checkpoint of every run. Under Gaussian noise these are densities of the noisy data with the constant of "
    "uniform noise, log2(levels / 2): they are comparable along a curve, but are not code lengths. Levels are "
    "2 / (levels - 1) apart in that case; at the resolution of one level all values would be lower by log2(levels / "
    "(levels - 1)) (0.0875 with 17 levels, 0.0056 with 256)."
)
_ROC = (
    "An example is classified as in distribution when its log p(x), averaged over draws, is above a threshold. AUROC "
    "is the probability that an in-distribution example has the larger log p(x): 0.5 is chance; below 0.5, "
    "out-of-distribution data are likelier. Newest checkpoints."
)
_TERMS = (
    "-log2 per dimension of the density of the prior and of the Jacobian determinant of every block. With the constant "
    "of the levels, log2(levels / 2), they add up to bits/dim."
)
_CELLS = (
    "s.e. data: standard error over examples, draws averaged first; s.e. draws: over draws of the noise, examples "
    "averaged first. Median: over examples; not finite: number of log-likelihoods that overflow, for which there is "
    "no mean. Uniform noise: an upper bound of the code length of the integers."
)


def _draw(path: Path, draw: Callable[[], Figure | None]) -> PlotResult:
    """Writes a plot, or removes an old one where there is no data any more.

    A plot that fails does not fail the report, because the results of a sweep may have taken hours.
    """
    try:
        figure = draw()
        if figure is not None:
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=110)
            return PlotResult(written=True)
    except OSError:
        raise
    except Exception as error:  # matplotlib raises various errors for extreme values
        path.unlink(missing_ok=True)
        return PlotResult(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    path.unlink(missing_ok=True)
    return NO_PLOT


def _lost(row: Row) -> tuple[str, ...]:
    return (*_label_cells(row), f"{EXAMPLES_FOLDER}/{row['cell']}.npz")


def _key(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("run", "step", "data", "noise", "sigma", "condition", "dtype")}


def _difference_values(one: Difference) -> dict[str, Any]:
    return {**_key(one.row), "than": one.than, "mean": one.mean, "error": one.error, "largest": one.largest}


def _label_cells(row: Row) -> tuple[str, ...]:
    noise = "uniform" if row["noise"] == "uniform" else f"{row['sigma']:g}"
    condition = row["condition"] if row["dtype"] == "float32" else f"{row['condition']} {row['dtype']}"
    return (row["run"], str(row["step"]), row["data"], noise, condition)


_LABELS = ("run", "step", "data", "noise", "condition")


def _auroc_table(separations: Sequence[Separation]) -> Table:
    """The AUROC of the newest checkpoints."""
    last = {row_key(row) for row in plots.newest([one.row for one in separations])}
    separations = [one for one in separations if row_key(one.row) in last]
    rows = [
        (*_label_cells(one.row), " + ".join(one.inside), f"{one.auroc.area:.4f}", format_number(one.auroc.error))
        for one in separations
    ]
    return [(*_LABELS, "against", "AUROC", "s.e."), *rows]


def _difference_table(differences: Sequence[Difference]) -> Table:
    rows = [
        (
            *_label_cells(one.row),
            format_number(one.mean, 6, "+"),
            format_number(one.error, 6),
            format_number(one.largest, 6),
        )
        for one in differences
    ]
    return [(*_LABELS, "mean", "s.e. data", "largest of an example"), *rows]


def _terms_table(rows: Sequence[Row]) -> Table:
    """The terms of bits/dim of the newest checkpoints."""
    rows = plots.newest(plots.plain(rows))
    blocks = max(len(row["logdet_bits"]) for row in rows)
    lines = []
    for row in rows:
        constant = format_number(float(np.log2(row["levels"] / 2.0))) if row["levels"] else "-"
        terms = [format_number(value) for value in (row["prior_bits"], *row["logdet_bits"])]
        lines.append((*_label_cells(row), constant, *terms, *["-"] * (blocks - len(row["logdet_bits"]))))
    return [(*_LABELS, "constant", "prior", *(f"block {index}" for index in range(blocks))), *lines]


def _cells_table(rows: Sequence[Row]) -> Table:
    raw = any(row["raw_bits_per_dim"] is not None for row in rows)
    head = [*_LABELS, "examples", "draws", "bits/dim", "s.e. data", "s.e. draws", "median"]
    head += ["not finite", "nats/dim", "tokens/s"]
    lines = []
    for row in rows:
        values = [row[name] for name in ("bits_per_dim", "example_error", "draw_error", "median_bits")]
        rate = row["tokens_per_second"]
        line = [*_label_cells(row), str(row["examples"]), str(row["draws"]), *map(format_number, values)]
        line += [str(row["not_finite"]), format_number(row["nats_per_dim"]), "-" if rate is None else f"{rate:.0f}"]
        lines.append([*line, format_number(row["raw_bits_per_dim"])] if raw else line)
    return [[*head, "unscaled latents"] if raw else head, *lines]


def format_number(value: float | None, digits: int = 4, sign: str = "") -> str:
    """A number in a table; "-" for None and for values that are not finite."""
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:{sign}.{digits}f}" if abs(value) < 1e5 else f"{value:{sign}.3e}"


def _markdown(title: str, sections: Sequence[Section]) -> str:
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        if section.picture is not None:
            parts.append(f"![{section.title}]({PLOTS_FOLDER}/{section.picture}.png)")
        if section.table is not None:
            parts.append(text_table([[cell.replace("|", "\\|") for cell in row] for row in section.table]))
    return "\n\n".join(parts) + "\n"


def _page(title: str, sections: Sequence[Section], out: Path) -> str:
    """A self-contained HTML file with embedded plots."""
    parts = [f"<h1>{escaped(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{escaped(section.title)}</h2>")
        if section.text:
            parts.append(f"<p>{escaped(section.text)}</p>")
        if section.picture is not None:
            data = (out / PLOTS_FOLDER / f"{section.picture}.png").read_bytes()
            parts.append(f"<p>{html_picture(data, section.title)}</p>")
        if section.table is not None:
            parts.append(html_table(section.table))
    return html_page(title, "\n".join(parts))
