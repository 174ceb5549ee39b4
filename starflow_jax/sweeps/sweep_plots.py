"""Plots of a sweep, each a matplotlib figure, or None where the sweep has no data for it.

Colours stand for data sets, line styles for conditions, panels for noise levels or runs. Error bars are standard errors
over examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from starflow_jax.sweeps.separation import Row, Separation, row_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Palette = Mapping[str, str]
LINES = {"true": "-", "none": "-", "dropped": "--", "shuffled": ":"}
ROLES = {"in": "in distribution", "out": "out of distribution"}
# Limits of panels side by side and of ticks, for legibility.
MAX_PANELS = 4
MAX_TICKS = 8


def data_colours(rows: Sequence[Row]) -> Palette:
    """The colours of all data sets of a sweep, which are the same in all plots."""
    return {name: f"C{index % 10}" for index, name in enumerate(dict.fromkeys(row["data"] for row in rows))}


def plain(rows: Sequence[Row]) -> list[Row]:
    """Cells that were computed in float32; plots show no others."""
    return [row for row in rows if row["dtype"] == "float32"]


def newest(rows: Sequence[Row]) -> list[Row]:
    """The cells of the last step of every run."""
    last: dict[str, int] = {}
    for row in rows:
        last[row["run"]] = max(row["step"], last.get(row["run"], 0))
    return [row for row in rows if row["step"] == last[row["run"]]]


def noise_name(row: Row) -> str:
    """The noise of a row, for titles."""
    return "uniform noise" if row["noise"] == "uniform" else f"noise {row['sigma']:g}"


def plot_steps(rows: Sequence[Row], palette: Palette) -> Figure | None:
    """Bits/dim against the step, with a column for each noise level and a row for each role."""
    rows = _with_several_steps(plain(rows))
    if not rows:
        return None
    figure, panels = _by_role(rows, "noise", _noises(rows))
    for axes, panel_rows, title in panels:
        for name, line in _series(panel_rows).items():
            _line(axes, rows, palette, name, [row["step"] for row in line], line)
        axes.set(xlabel="step", ylabel=_unit(panel_rows), title=title)
    return _finished(figure, rows, palette)


def plot_noise(rows: Sequence[Row], palette: Palette) -> Figure | None:
    """Bits/dim of the newest checkpoints against sigma, with a column for each run and a row for each role."""
    rows = newest(plain(rows))
    if len({row["sigma"] for row in rows if row["noise"] == "gaussian"}) < 2:
        return None
    figure, panels = _by_role(rows, "run", list(dict.fromkeys(row["run"] for row in rows)))
    for axes, panel_rows, title in panels:
        for name, line in _series(panel_rows).items():
            gaussian = sorted((row for row in line if row["noise"] == "gaussian"), key=lambda row: row["sigma"])
            _line(axes, rows, palette, name, [row["sigma"] for row in gaussian], gaussian)
            for row in line:
                if row["noise"] == "uniform" and row["bits_per_dim"] is not None:
                    axes.axhline(row["bits_per_dim"], color=palette[row["data"]], linewidth=0.8, alpha=0.5)
        thin = " (thin lines: uniform)" if any(row["noise"] == "uniform" for row in panel_rows) else ""
        axes.set(xlabel=f"sigma of Gaussian noise{thin}", ylabel=_unit(panel_rows), title=title, xscale="log")
        _ticks(axes, {row["sigma"]: f"{row['sigma']:g}" for row in panel_rows if row["sigma"]})
    return _finished(figure, rows, palette)


def plot_sizes(rows: Sequence[Row], palette: Palette) -> Figure | None:
    """Bits/dim of the newest checkpoints on data in distribution against the number of parameters."""
    rows = [row for row in newest(plain(rows)) if row["role"] == "in"]
    if len({row["parameters"] for row in rows}) < 2:
        return None
    figure, panels = _by_role(rows, "noise", _noises(rows))
    for axes, panel_rows, title in panels:
        for name in {(row["data"], row["condition"]): None for row in panel_rows}:
            line = [row for row in panel_rows if (row["data"], row["condition"]) == name]
            line = sorted(line, key=lambda row: row["parameters"])
            _line(axes, rows, palette, ("", *name), [row["parameters"] for row in line], line)
        axes.set(xlabel="run, and its parameters", ylabel=_unit(panel_rows), title=title, xscale="log")
        sizes = {row["parameters"]: _escaped(f"{row['run']}\n{row['parameters']:,}") for row in panel_rows}
        _ticks(axes, sizes)
        axes.margins(x=0.15)
    return _finished(figure, rows, palette, runs=False)


def plot_frames(rows: Sequence[Row], palette: Palette) -> Figure | None:
    """Bits/dim of every frame given earlier frames, for the newest checkpoints."""
    rows = [row for row in newest(plain(rows)) if len(row["frame_bits"]) > 1]
    if not rows:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, panels = _by_role(rows, "noise", _noises(rows))
    for axes, panel_rows, title in panels:
        for row in panel_rows:
            mean, error = numbers(row["frame_bits"]), np.nan_to_num(numbers(row["frame_errors"]))
            colour = palette[row["data"]]
            axes.plot(mean, LINES[row["condition"]], color=colour, marker=_marker(rows, row["run"]), markersize=3)
            axes.fill_between(range(len(mean)), mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="frame", ylabel=f"{_unit(panel_rows)} given earlier frames", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, rows, palette)


def plot_terms(rows: Sequence[Row], palette: Palette) -> Figure | None:
    """Terms of bits/dim of the newest checkpoints: the constant of the levels, the prior, every block."""
    rows = newest(plain(rows))
    if not rows:
        return None
    runs = list(dict.fromkeys(row["run"] for row in rows))[:MAX_PANELS]
    figure = _figure(len(runs), 1, width=4.6)
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        panel_rows = [row for row in rows if row["run"] == run]
        panel_rows = [
            row
            for row in panel_rows
            if row["noise"] == panel_rows[0]["noise"] and row["sigma"] == panel_rows[0]["sigma"]
        ]
        panel_rows = [row for row in panel_rows if row["condition"] == _common_condition(panel_rows)]
        width = 0.8 / len(panel_rows)
        for position, row in enumerate(panel_rows):
            constant = [float(np.log2(row["levels"] / 2.0))] if row["levels"] else []
            heights = numbers([*constant, row["prior_bits"], *row["logdet_bits"]])
            at = np.arange(len(heights)) + (position - (len(panel_rows) - 1) / 2) * width
            axes.bar(at, heights, width, color=palette[row["data"]])
        if not any(np.isfinite(numbers([row["prior_bits"], *row["logdet_bits"]])).any() for row in panel_rows):
            _not_finite(axes)
        names = [*(["constant"] if panel_rows[0]["levels"] else []), "prior"]
        names += [f"block {index}" for index in range(len(panel_rows[0]["logdet_bits"]))]
        many = len(names) > 6
        axes.set_xticks(range(len(names)), names, rotation=45 if many else 0, ha="right" if many else "center")
        axes.axhline(0.0, color="0.3", linewidth=0.8)
        axes.tick_params(axis="x", labelsize=8)
        axes.set(
            ylabel=_unit(panel_rows),
            title=_escaped(f"{run}, step {panel_rows[0]['step']}, {noise_name(panel_rows[0])}"),
        )
    return _finished(figure, rows, palette, lines=False)


def plot_histograms(rows: Sequence[Row], palette: Palette, examples: dict[str, np.ndarray], bins: int) -> Figure | None:
    """Bits/dim of single examples of the newest checkpoints, with a row for each run and a column for each noise level.

    Args:
      examples: of every cell, [n], by its id.
    """
    rows = [row for row in newest(plain(rows)) if row["cell"] in examples]
    if not rows:
        return None
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    runs, noises = list(dict.fromkeys(row["run"] for row in rows))[:MAX_PANELS], _noises(rows)
    figure = _figure(len(noises), len(runs))
    grid = figure.subplots(len(runs), len(noises), squeeze=False)
    for line, run in zip(grid, runs, strict=True):
        for axes, noise in zip(line, noises, strict=True):
            panel_rows = [row for row in rows if row["run"] == run and noise_name(row) == noise]
            common = _common_condition(panel_rows)
            panel_rows = [row for row in panel_rows if row["condition"] == common]
            if not panel_rows:
                axes.set_axis_off()
                continue
            all_bits = np.concatenate([examples[row["cell"]] for row in panel_rows])
            all_bits = all_bits[np.isfinite(all_bits)]
            suffix = "" if common == "none" else f", condition {common}"
            axes.set(xlabel=_unit(panel_rows), ylabel="share of examples", title=_escaped(f"{run}, {noise}{suffix}"))
            if not len(all_bits):
                _not_finite(axes)
                continue
            low, high = np.percentile(all_bits, [0.2, 99.8])
            wide = bool(low > 0 and high > 4 * np.median(all_bits))
            edges = (np.geomspace if wide else np.linspace)(low, max(high, low + 1e-6 * max(1.0, abs(low))), bins + 1)
            for row in panel_rows:
                values = np.clip(np.nan_to_num(examples[row["cell"]], nan=np.inf), edges[0], edges[-1])
                options: dict[str, Any] = {"color": palette[row["data"]]}
                options["weights"] = np.full(len(values), 1.0 / len(values))
                axes.hist(values, edges, alpha=0.35, **options)
                axes.hist(values, edges, histtype="step", linewidth=1.2, **options)
            if wide:
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter(NullFormatter())
                if edges[-1] < 100 * edges[0]:  # for wider ranges the default ticks, powers of ten, are used
                    axes.xaxis.set_major_formatter(ScalarFormatter())
                    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
                else:
                    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    return _finished(figure, rows, palette, lines=False)


def plot_roc(separations: Sequence[Separation], palette: Palette) -> Figure | None:
    """ROC of log p(x) of the newest checkpoints, with a row for each run and a column for each noise level."""
    rows = newest(plain([separation.row for separation in separations]))
    if not rows:
        return None
    runs, noises = list(dict.fromkeys(row["run"] for row in rows))[:MAX_PANELS], _noises(rows)
    figure = _figure(len(noises), len(runs), height=3.6)
    grid = figure.subplots(len(runs), len(noises), squeeze=False)
    chosen = {row_key(row) for row in rows}
    for line, run in zip(grid, runs, strict=True):
        for axes, noise in zip(line, noises, strict=True):
            panel = [
                separation
                for separation in separations
                if row_key(separation.row) in chosen and separation.row["run"] == run
            ]
            panel = [separation for separation in panel if noise_name(separation.row) == noise]
            common = _common_condition([separation.row for separation in panel])
            for separation in panel:
                if separation.row["condition"] != common:
                    continue
                label = _escaped(f"{separation.row['data']} {separation.auroc.area:.3f}")
                colour = palette[separation.row["data"]]
                axes.plot(separation.false_positives, separation.true_positives, color=colour, label=label)
            axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
            axes.set(xlabel="false positive rate (out of distribution)", ylabel="true positive rate (in distribution)")
            axes.set(aspect="equal")
            axes.set_title(_escaped(f"{run}, {noise}"), fontsize=9)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7, title="AUROC", title_fontsize=7, loc="lower right")
    return figure


def plot_auroc(separations: Sequence[Separation], palette: Palette) -> Figure | None:
    """AUROC of log p(x) against the step, with a column for each noise level."""
    rows = _with_several_steps(plain([separation.row for separation in separations]))
    if not rows:
        return None
    score = {row_key(separation.row): separation.auroc.area for separation in separations}
    noises = _noises(rows)
    figure = _figure(len(noises), 1)
    for axes, noise in zip(figure.subplots(1, len(noises), squeeze=False)[0], noises, strict=True):
        for name, line in _series([row for row in rows if noise_name(row) == noise]).items():
            steps, values = [row["step"] for row in line], [score[row_key(row)] for row in line]
            axes.plot(steps, values, LINES[name[2]], color=palette[name[1]], marker=_marker(rows, name[0]), ms=4)
        axes.axhline(0.5, color="0.6", linewidth=0.8)
        axes.set(xlabel="step", ylabel="AUROC of log p(x)", title=noise, ylim=(-0.03, 1.03))
    return _finished(figure, rows, palette)


def _figure(columns: int, rows: int, *, width: float = 4.0, height: float = 3.2) -> Figure:
    # Imported here because importing matplotlib takes a second; this backend needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width * columns, 6.6), height * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _by_role(rows: Sequence[Row], across: str, columns: list[Any]) -> tuple[Figure, list[tuple[Axes, list[Row], str]]]:
    """Panels for roles (rows) and runs or noise levels (columns), each with its rows of the results and its title."""
    roles = [role for role in ROLES if any(row["role"] == role for row in rows)]
    columns = columns[:MAX_PANELS]
    figure = _figure(len(columns), len(roles))
    grid = figure.subplots(len(roles), len(columns), squeeze=False)
    panels = []
    for line, role in zip(grid, roles, strict=True):
        for axes, column in zip(line, columns, strict=True):
            name = noise_name if across == "noise" else _run
            panel_rows = [row for row in rows if row["role"] == role and name(row) == column]
            if not panel_rows:
                axes.set_axis_off()
                continue
            panels.append((axes, panel_rows, _escaped(f"{column}, {ROLES[role]}" if len(roles) > 1 else str(column))))
    return figure, panels


def _not_finite(axes: Axes) -> None:
    """Writes a message into an empty panel."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "not finite", transform=axes.transAxes, ha="center", va="center", color="0.4")


def _ticks(axes: Axes, names: Mapping[float, str]) -> None:
    """Labels at most `MAX_TICKS` of the values on a logarithmic axis, instead of powers of ten."""
    values = sorted(names)
    indices = np.linspace(0, len(values) - 1, min(len(values), MAX_TICKS)).round().astype(int)
    chosen = [values[index] for index in indices]
    axes.set_xticks(chosen, [names[value] for value in chosen])
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="x", labelsize=8)


def _run(row: Row) -> str:
    return row["run"]


def _series(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows by run, data and condition, each by step."""
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["step"]):
        series.setdefault((row["run"], row["data"], row["condition"]), []).append(row)
    return series


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Values of rows as an array; None, for values that are not finite, becomes NaN, which is not plotted."""
    return np.asarray([np.nan if value is None else value for value in values], np.float64)


def _line(
    axes: Axes, rows: Sequence[Row], palette: Palette, name: tuple[str, str, str], at: list[float], line: Sequence[Row]
) -> None:
    run, data, condition = name
    values, errors = numbers([row["bits_per_dim"] for row in line]), numbers([row["example_error"] for row in line])
    errors = np.nan_to_num(errors)
    style: dict[str, Any] = {"color": palette[data], "linestyle": LINES[condition], "linewidth": 1.3}
    axes.errorbar(at, values, errors, marker=_marker(rows, run), markersize=3.5, capsize=2, elinewidth=0.8, **style)


def _finished(
    figure: Figure, rows: Sequence[Row], palette: Palette, *, lines: bool = True, runs: bool = True
) -> Figure:
    """Adds grids, and one legend of colours, line styles and markers for all panels."""
    from matplotlib.container import ErrorbarContainer
    from matplotlib.lines import Line2D

    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(9)
        if not lines or not axes.lines:
            continue
        caps = {cap for bars in axes.containers if isinstance(bars, ErrorbarContainer) for cap in bars.lines[1]}
        lines_data = [line.get_ydata() for line in axes.lines if line not in caps]
        heights = np.concatenate(lines_data).astype(np.float64)
        heights = heights[np.isfinite(heights)]
        if not len(heights):
            _not_finite(axes)
        # Outliers, and error bars below 0, do not determine the limits of an axis.
        elif heights.min() > 0 and heights.max() > 20 * np.median(heights):
            axes.set_yscale("log")
            margin = float(heights.max() / heights.min()) ** 0.05
            axes.set_ylim(heights.min() / margin, heights.max() * margin)
    handles = [
        Line2D([], [], color=palette[name], linewidth=3, label=_escaped(name))
        for name in dict.fromkeys(row["data"] for row in rows)
    ]
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    if lines and len(conditions) > 1:
        handles += [Line2D([], [], color="0.3", ls=LINES[name], label=f"condition {name}") for name in conditions]
    names = list(dict.fromkeys(row["run"] for row in rows))
    if lines and runs and len(names) > 1:
        handles += [
            Line2D([], [], color="0.3", linestyle="", marker=_marker(rows, run), label=_escaped(run)) for run in names
        ]
    columns = max(1, int(figure.get_figwidth() / 1.6))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def _marker(rows: Sequence[Row], run: str) -> str:
    runs = list(dict.fromkeys(row["run"] for row in rows))
    return "os^Dv*PX"[runs.index(run) % 8] if run in runs else "o"


def _noises(rows: Sequence[Row]) -> list[str]:
    """Names of at most `MAX_PANELS` noise levels, evenly selected, uniform noise first, then by sigma."""
    ordered = sorted(rows, key=lambda row: (row["noise"] != "uniform", row["sigma"]))
    names = list(dict.fromkeys(map(noise_name, ordered)))
    indices = np.linspace(0, len(names) - 1, min(len(names), MAX_PANELS)).round().astype(int)
    return [names[index] for index in indices]


def _common_condition(rows: Sequence[Row]) -> str:
    """The condition under which most data sets were scored; the first of `LINES` among equals."""
    counts = {name: len({row["data"] for row in rows if row["condition"] == name}) for name in LINES}
    return max(counts, key=lambda name: counts[name])


def _with_several_steps(rows: Sequence[Row]) -> list[Row]:
    """Rows of runs that have more than one."""
    steps: dict[str, set[int]] = {}
    for row in rows:
        steps.setdefault(row["run"], set()).add(row["step"])
    return [row for row in rows if len(steps[row["run"]]) > 1]


def _unit(rows: Sequence[Row]) -> str:
    return " or ".join(dict.fromkeys(row["unit"] for row in rows))


def _escaped(text: str) -> str:
    return text.replace("$", r"\$")
