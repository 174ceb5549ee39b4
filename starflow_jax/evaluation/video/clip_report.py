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
Speed, consistency and direction of a clip are those of the centroid of all that differs from the background: of a clip
that shows one object. Where several move, or the camera does, the whole frame and the blocks below say more."""
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
        found = clip.motion["centroid"]
        means = [number(_mean_of(clip.curves.get(label)), digits) for label, digits in (("PSNR", 2), ("SSIM", 4))]
        bits = number(_mean_of(clip.curves.get(BITS)), 3)
        moved = [number(value, 2) for value in (found.speed, found.consistency, clip.direction)]
        rows.append((clip.name, clip.caption, str(clip.frames), *means, *moved, bits, "yes" if clip.static else ""))
    return f"{text_table(rows)}\n\n{_CAUTION}"


def motion_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row for each group and method; the argument has `group_figures` by name of the group."""
    rows: list[tuple[str, ...]] = [
        ("motion", "followed", "speed", "consistency", "evenness", "change", "static", "direction right")
    ]
    for name, figures in groups.items():
        for place, method in enumerate(METHODS):
            found = figures["motion"][method]
            cells = [_with_error(found[key], 2) for key in ("speed", "consistency", "evenness", "change")]
            direction = figures["direction"]
            once = ("", "")
            if place == 0:
                share = "-" if direction is None else f"{100 * direction['share']:.0f} % of {direction['clips']}"
                once = (f"{figures['static']} of {figures['clips']}", share)
            rows.append((name, _NAMES[method], *cells, *once))
    return text_table(rows)


def drift_table(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a row for each group and quantity; the argument has `group_figures` by name of the group."""
    rows = [("drift", "of", "at first", "at last", "slope a frame", "last - first quarter")]
    for name, figures in groups.items():
        for label, found in figures["drift"].items():
            # Distances are 0 at frame 0, so their first value is that of frame 1.
            first = found["mean"][1 if label in ("pixels", "spectrum") and len(found["mean"]) > 1 else 0]
            slope = _with_error({"mean": found["slope"], "error": found["slope_error"]}, 4)
            late = _with_error({"mean": found["late"], "error": found["late_error"]}, 3)
            rows.append((name, label, number(first, 3), number(found["mean"][-1], 3), slope, late))
    return text_table(rows)


def number(value: float | None, digits: int) -> str:
    """A number for a table; "-" for none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _with_error(found: Mapping[str, Any], digits: int) -> str:
    error = number(found["error"], digits)
    return number(found["mean"], digits) + ("" if error == "-" else f" +- {error}")


def _mean_of(curve: np.ndarray | None) -> float:
    return math.nan if curve is None or np.isnan(curve).all() else float(np.nanmean(curve))


def plot_drift(path: Path, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Plots every quantity against the frame as a PNG file, one line for each group with its standard error."""
    figure, canvas = _figure()
    labels = list(dict.fromkeys(label for figures in groups.values() for label in figures["drift"]))
    figure.set_size_inches(4.4 * len(labels), 3.6)
    for axes, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        for place, (name, figures) in enumerate(groups.items()):
            if label not in figures["drift"]:
                continue
            found = figures["drift"][label]
            mean, error = (
                np.asarray([math.nan if v is None else v for v in found[key]], float) for key in ("mean", "error")
            )
            mean = np.where(np.isinf(mean), math.nan, mean)  # PSNR of equal frames
            axes.plot(mean, color=f"C{place}", label=f"{name} ({figures['clips']})")
            error = np.nan_to_num(error)
            axes.fill_between(range(len(mean)), mean - error, mean + error, color=f"C{place}", alpha=0.2)
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
    for place, (axes, (name, clips)) in enumerate(zip(panels, groups.items(), strict=True)):
        for clip in clips[:24]:
            axes.plot(clip.path[:, 1], clip.path[:, 0], linewidth=0.8, marker=".", markersize=3)
            axes.plot(*clip.path[0, ::-1], "ko", markersize=3)
        axes.set(title=f"{name}: centroids, from the black dots", xlabel="column", ylabel="row", aspect="equal")
        axes.title.set_fontsize(9)
        axes.set(xlim=along, ylim=down[::-1])
        longest = max(clip.frames for clip in clips)
        steps = np.full((len(clips), longest - 1), math.nan)
        for row, clip in enumerate(clips):
            steps[row, : clip.frames - 1] = np.hypot(*np.diff(clip.path, axis=0).T)
        known = ~np.isnan(steps).all(axis=0)
        shown = np.full(longest - 1, math.nan)
        shown[known] = np.nanmean(steps[:, known], axis=0)
        last.plot(np.arange(1, longest), shown, color=f"C{place}", label=name)
    last.set(xlabel="frame", ylabel="mean step of the centroid, pixels", ylim=(0, None))
    last.grid(alpha=0.3)
    last.legend(fontsize=8)
    _save(path, canvas)


def _bounds(values: np.ndarray) -> tuple[float, float]:
    """Limits of an axis for values of which some may be NaN."""
    known = values[~np.isnan(values)]
    return (float(known.min()) - 1.0, float(known.max()) + 1.0) if len(known) else (0.0, 1.0)


def _figure() -> tuple[Any, Any]:
    # Imported here because importing matplotlib takes a second; this backend needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _save(path: Path, canvas: Any) -> None:
    with replacing(path) as temporary:
        canvas.figure.savefig(temporary, dpi=130)
