"""The curves of a run: which metrics share a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starflow_jax.reports.curve_chart import Line, chart

_SKIPPED = "share of updates skipped"  # shown where some are
# Figures in their order: the title, and the columns of `metrics.csv` with their labels.
_FIGURES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("bits/dim", (("bits_per_dim", "training"), ("held_out_bits_per_dim", "held out"))),
    ("loss", (("loss", "training"),)),
    ("learning rate", (("learning_rate", "learning rate"),)),
    ("images per second", (("images_per_second", "training"),)),
    ("skipped so far", (("skipped_updates", "updates"), ("bad_examples", "unreadable examples"))),
    ("norm of the gradient", (("grad_norm", "flow"), ("denoiser_grad_norm", "denoiser"))),
    ("share of the time", (("data_wait", "waiting for data"), ("mfu", "model FLOPs of the peak"))),
    ("loss of the denoiser", (("loss_denoiser", "training"),)),
    ("terms of the loss", (("loss_z", "latents"), ("loss_logdet", "log-determinant"))),
    (_SKIPPED, (("skipped", "flow"), ("denoiser_skipped", "denoiser"))),
)
_MOST_FIGURES = 30


def curve_figures(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Figures of the rows of a `metrics.csv` as HTML; empty where there are no rows.

    Columns of other trainings than that of a flow have a figure each.
    """
    known = {"step", *(name for _, columns in _FIGURES for name, _ in columns)}
    others = list(dict.fromkeys(str(name) for row in rows for name in row if name not in known))
    figures: list[str] = []
    for title, columns in (*_FIGURES, *((name.replace("_", " "), ((name, name),)) for name in others)):
        lines = [Line(label, tuple((row["step"], row[name]) for row in rows if name in row)) for name, label in columns]
        lines = [line for line in lines if line.points]
        nothing = title == _SKIPPED and not any(value for line in lines for _, value in line.points)
        if lines and not nothing and len(figures) < _MOST_FIGURES:
            figures.append(chart(title, lines))
    return figures
