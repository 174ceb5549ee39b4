"""Plots of time and memory over the length of the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.atomic_writing import replacing


def plot(path: Path, lines: Sequence[dict[str, Any]], other: str) -> None:
    """Draws a column for each operation: seconds above, peak of memory below; both axes are logarithmic.

    Args:
      path: PNG file.
      lines: as in growth.py.
      other: the name of the other side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    operations = list(dict.fromkeys(line["operation"] for line in lines))
    figure = Figure(figsize=(3.6 * len(operations), 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(operations), squeeze=False)
    counts = sorted({line["tokens"] for line in lines})
    sides = {"ours": ("starflow_jax", "o-"), "theirs": (other, "s--")}
    for column, operation in enumerate(operations):
        own = [line for line in lines if line["operation"] == operation]
        for row, (field, title, scale) in enumerate((("seconds", "seconds", 1.0), ("peak", "MiB at the peak", 2**20))):
            axes = panels[row, column]
            drawn = False
            for side, (label, style) in sides.items():
                points = [(line["tokens"], line[side][field] / scale) for line in own if line.get(side, {}).get(field)]
                if points:
                    axes.plot(*zip(*points, strict=True), style, label=label)
                    drawn = True
            axes.set(xscale="log", yscale="log", title=operation if not row else "", xlabel="tokens")
            axes.set_xticks(counts, [f"{count:,}" for count in counts])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.set_visible(drawn)
            if column == 0:
                axes.set_ylabel(title)
    panels[0, 0].legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
