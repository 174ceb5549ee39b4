"""Metrics of clips as tables and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.core.figures import text_table
from starflow_jax.evaluation.video.clip_metrics import BITS, METHODS, ClipQuality

_NAMES = {"centroid": "centroid (of one object)", "frame": "whole frame", "blocks": "blocks"}
_CAUTION = """\
Speed, consistency and direction of a clip are those of the centroid of everything that differs from the background,
which suits clips of one object. If several objects or the camera move, see those of the frame and of the blocks."""
_AXES = {
    "pixels": "distance to frame 0, pixels",
    "spectrum": "distance to frame 0, spectrum",
    BITS: "bits/dim given earlier frames",
}


def clips_table(clips: Sequence[ClipQuality]) -> str:
    """A table with a row for each clip, and a note on the meaning of its motion."""
    rows: list[tuple[str, ...]] = [
        ("clip", "caption", "frames", "PSNR dB", "SSIM", "speed", "consistency", "direction", BITS, "")
    ]
    for clip in clips:
        motion = clip.motion["centroid"]
        means = [
            format_number(_mean_of(clip.curves.get(label)), digits) for label, digits in (("PSNR", 2), ("SSIM", 4))
        ]
        bits = format_number(_mean_of(clip.curves.get(BITS)), 3)
        values = [format_number(value, 2) for value in (motion.speed, motion.consistency, clip.direction)]
        rows.append((clip.name, clip.caption, str(clip.frames), *means, *values, bits, "yes" if clip.static else ""))
    return f"{text_table(rows)}\n\n{_CAUTION}"


def motion_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row for each group and method; the argument has `group_figures` by name of the group."""
    rows: list[tuple[str, ...]] = [
        ("motion", "method", "speed", "consistency", "evenness", "change", "static", "direction correct")
    ]
    for name, figures in groups.items():
        for index, method in enumerate(METHODS):
            motion = figures["motion"][method]
            cells = [_with_error(motion[key], 2) for key in ("speed", "consistency", "evenness", "change")]
            direction = figures["direction"]
            group_cells = ("", "")
            if index == 0:
                share = "-" if direction is None else f"{100 * direction['share']:.0f} % of {direction['clips']}"
                group_cells = (f"{figures['static']} of {figures['clips']}", share)
            rows.append((name, _NAMES[method], *cells, *group_cells))
    return text_table(rows)


def drift_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row for each group and quantity; the argument has `group_figures` by name of the group."""
    rows = [("drift", "of", "first", "last", "slope per frame", "last - first quarter")]
    for name, figures in groups.items():
        for label, drift in figures["drift"].items():
            # Distances are 0 at frame 0, so their first value is that of frame 1.
            first = drift["mean"][1 if label in ("pixels", "spectrum") and len(drift["mean"]) > 1 else 0]
            slope = _with_error({"mean": drift["slope"], "error": drift["slope_error"]}, 4)
            late = _with_error({"mean": drift["late"], "error": drift["late_error"]}, 3)
            rows.append((name, label, format_number(first, 3), format_number(drift["mean"][-1], 3), slope, late))
    return text_table(rows)


def format_number(value: float | None, digits: int) -> str:
    """A number for a table; "-" for none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _with_error(estimate: Mapping[str, Any], digits: int) -> str:
    error = format_number(estimate["error"], digits)
    return format_number(estimate["mean"], digits) + ("" if error == "-" else f" +- {error}")


def _mean_of(curve: np.ndarray | None) -> float:
    return math.nan if curve is None or np.isnan(curve).all() else float(np.nanmean(curve))


def plot_drift(path: Path, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Plots every quantity against the frame as a PNG file, one line for each group with its standard error."""
    figure, canvas = _figure()
    labels = list(dict.fromkeys(label for figures in groups.values() for label in figures["drift"]))
    figure.set_size_inches(4.4 * len(labels), 3.6)
    for axes, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        for index, (name, figures) in enumerate(groups.items()):
            if label not in figures["drift"]:
                continue
            drift = figures["drift"][label]
            mean, error = (
                np.asarray([math.nan if v is None else v for v in drift[key]], float) for key in ("mean", "error")
            )
            mean = np.where(np.isinf(mean), math.nan, mean)  # PSNR of equal frames
            axes.plot(mean, color=f"C{index}", label=f"{name} ({figures['clips']})")
            error = np.nan_to_num(error)
            axes.fill_between(range(len(mean)), mean - error, mean + error, color=f"C{index}", alpha=0.2)
        axes.set(xlabel="frame", ylabel=_AXES.get(label, label))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(path, canvas)


def plot_motion(path: Path, groups: Mapping[str, Sequence[ClipQuality]]) -> None:
    """Draws the paths of centroids, a panel a group, and the lengths of their steps by frame, as a PNG file."""
    figure, canvas = _figure()
    figure.set_size_inches(4.4 * (len(groups) + 1), 3.8)
    *panels, last = figure.subplots(1, len(groups) + 1)
    everywhere = np.concatenate([clip.path for clips in groups.values() for clip in clips])
    down, along = (_bounds(everywhere[:, axis]) for axis in (0, 1))
    for index, (axes, (name, clips)) in enumerate(zip(panels, groups.items(), strict=True)):
        for clip in clips[:24]:
            axes.plot(clip.path[:, 1], clip.path[:, 0], linewidth=0.8, marker=".", markersize=3)
            axes.plot(*clip.path[0, ::-1], "ko", markersize=3)
        axes.set(
            title=f"{name}: paths of the centroids from the black dots", xlabel="column", ylabel="row", aspect="equal"
        )
        axes.title.set_fontsize(9)
        axes.set(xlim=along, ylim=down[::-1])
        longest = max(clip.frames for clip in clips)
        steps = np.full((len(clips), longest - 1), math.nan)
        for row, clip in enumerate(clips):
            steps[row, : clip.frames - 1] = np.hypot(*np.diff(clip.path, axis=0).T)
        finite = ~np.isnan(steps).all(axis=0)
        mean_steps = np.full(longest - 1, math.nan)
        mean_steps[finite] = np.nanmean(steps[:, finite], axis=0)
        last.plot(np.arange(1, longest), mean_steps, color=f"C{index}", label=name)
    last.set(xlabel="frame", ylabel="mean step of the centroid, pixels", ylim=(0, None))
    last.grid(alpha=0.3)
    last.legend(fontsize=8)
    _save(path, canvas)


def _bounds(values: np.ndarray) -> tuple[float, float]:
    """Limits of an axis for values of which some may be NaN."""
    finite = values[~np.isnan(values)]
    return (float(finite.min()) - 1.0, float(finite.max()) + 1.0) if len(finite) else (0.0, 1.0)


def _figure() -> tuple[Any, Any]:
    # Imported here because importing matplotlib takes a second; this backend needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _save(path: Path, canvas: Any) -> None:
    with replacing(path) as temporary:
        canvas.figure.savefig(temporary, dpi=130)
