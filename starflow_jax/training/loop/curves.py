"""Plots of the metrics of a run."""

from __future__ import annotations

from pathlib import Path

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.training.checkpoints.workdir import CSV_FILE, CURVES_FILE
from starflow_jax.training.loop.metrics import read_metrics


def plot_curves(workdir: Path | str, path: Path | str | None = None) -> Path | None:
    """Plots the loss, and bits/dim if the run has it, against the step.

    Args:
      workdir: a run's folder with `metrics.csv`.
      path: the image file to write; None for `curves.png` in `workdir`.

    Returns:
      The path of the image, None if there are no metrics yet.
    """
    # Importing matplotlib takes a second. This interface needs no display and does not touch pyplot's state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(Path(workdir) / CSV_FILE)
    panels = [
        ("objective (nats/dim, constants dropped)", [("loss", "training")]),
        ("bits/dim", [("bits_per_dim", "training"), ("held_out_bits_per_dim", "held out")]),
        ("denoiser loss", [("loss_denoiser", "training")]),
    ]
    panels = [panel for panel in panels if any(name in row for name, _ in panel[1] for row in rows)]
    if not panels:
        return None
    figure = Figure(figsize=(5.0 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, label in lines:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 20 else None)
        axes.set(xlabel="step", ylabel=title)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    target = Path(path) if path is not None else Path(workdir) / CURVES_FILE
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=120)
    return target
