"""Tables and plots of the solvers' benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starflow_jax.core.figures import text_table


def table(name: str, result: dict[str, Any], target: float) -> str:
    """Both tables of a model as Markdown."""
    head = f"{name}: {result['tokens']} tokens, guidance {result['guidance']:g}, relative error {target:g}"
    parts = [head, _lines(result["lines"])]
    if result["attribution"]:
        parts += ["What the gain comes from, batch 1:", _lines(result["attribution"])]
    return "\n\n".join(parts)


def _lines(lines: list[dict[str, Any]]) -> str:
    pipelined = any("pipelined_depth" in line for line in lines)
    titles = ["solver", "batch", "seconds", "faster", "depth", "shallower", "tokens", "max error", "mean error"]
    titles.append("tolerance x")
    rows = [titles + ["pipelined depth"] * pipelined]
    for line in lines:
        missed = "" if line["within_target"] else " (misses)"
        row = [line["solver"], str(line["batch"]), f"{line['seconds']:.4f}", f"{line['faster']:.2f}x"]
        row += [str(line["depth"]), f"{line['shallower']:.1f}x", str(line["tokens"])]
        row += [f"{line['max_error']:.1e}{missed}", f"{line['mean_error']:.1e}"]
        row.append(f"{line['factor']:g}")
        rows.append(row + [str(line.get("pipelined_depth", ""))] * pipelined)
    return text_table(rows)


def plot(path: Path, results: dict[str, Any], target: float) -> None:
    """Plots error against time and against depth, one row of panels per model; sequential is a dotted line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from starflow_jax.core.atomic_writing import replacing

    figure = Figure(figsize=(11.0, 4.0 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(results), 2, squeeze=False)
    for (name, result), row in zip(results.items(), panels, strict=True):
        exact = result["lines"][0]
        for axes, field, words in ((row[0], "seconds_once", "seconds"), (row[1], "depth", "depth (evaluations)")):
            for line in result["lines"]:
                points = [p for p in line.get("curve", []) if 0 < p["max_error"] < 10]
                # Single timings are noisy, so every point uses its solver's best time per evaluation.
                rate = min((p["seconds_once"] / p["depth"] for p in points), default=0.0)
                positions = [p["depth"] * rate if field == "seconds_once" else p["depth"] for p in points]
                if points:
                    axes.plot(positions, [p["max_error"] for p in points], marker=".", label=line["solver"])
            position = exact["seconds"] if field == "seconds_once" else exact["depth"]
            axes.axvline(position, color="black", linestyle=":", label="sequential")
            axes.axhline(target, color="grey", linewidth=0.8)
            axes.set(xscale="log", yscale="log", xlabel=words, ylabel="largest relative error", title=name)
            axes.grid(alpha=0.3)
        row[1].legend(fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
