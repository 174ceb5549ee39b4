"""Plots of the applications of likelihood: one PNG file for each outcome of `likelihood_study`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.applications.calibration import Reliability
from starflow_jax.evaluation.applications.likelihood_study import Outcome
from starflow_jax.evaluation.applications.roc import roc_curve

_WIDE = 12  # number of images in a row


def draw_outcome(outcome: Outcome, train: ArraySource, test: ArraySource, path: Path) -> None:
    """Draws the outcome of one application as a PNG file."""
    draw: dict[str, Callable[..., None]] = {
        "classification": _classification,
        "out_of_distribution": _detection,
        "filtering": _filtering,
        "ranked_sampling": _ranked,
        "memorisation": _memorisation,
        "likelihood_ratios": _likelihood_ratios,
    }
    # Imported here because importing matplotlib takes a second; this backend needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw[outcome.name](figure, outcome, train, test)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _classification(figure: Any, outcome: Outcome, train: ArraySource, test: ArraySource) -> None:
    """Draws the most confident errors, or the least confident images where there are none, and the reliability."""
    wrong = outcome.shown["wrong"][:_WIDE]
    indices = wrong if len(wrong) else outcome.shown["least_sure"][:_WIDE]
    titles = [
        f"{test.labels[p]} classified as {outcome.shown['read'][p]}\n{outcome.shown['sure'][p]:.2f}" for p in indices
    ]
    title = "mistakes of the Bayes rule, most confident first" if len(wrong) else "no mistakes; least confident images"
    figure.set_size_inches(_WIDE * 1.05 + 1.0, 5.6)
    above, below = figure.subfigures(2, 1, height_ratios=[1.7, 3.9])
    above.suptitle(title, fontsize=9)
    _fill(above, [("", test.images[indices], titles)], test.levels, columns=_WIDE)
    _reliability(below.subplots(1, 2), outcome.shown["reliability"])


def _reliability(panels: Any, reliability: Reliability) -> None:
    """Draws the share of right predictions over their mean probability, and the number of predictions in every bin."""
    some = reliability.images > 0
    p, share, spread = (a[some] for a in (reliability.confidence, reliability.accuracy, reliability.spread))
    diagram, counts = panels
    diagram.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
    diagram.errorbar(p, p, 2 * spread, fmt="none", ecolor="0.7", elinewidth=5, label="calibrated, two deviations")
    diagram.plot(p, share, "o-", color="C0", label="Bayes rule")
    errors = (100 * reliability.expected_error, 100 * reliability.maximum_error)
    diagram.set_title(f"calibration error {errors[0]:.1f} %, at most {errors[1]:.1f} %", fontsize=9)
    name = "probability of the predicted class"
    diagram.set(xlabel=name, ylabel="share that is right", xlim=(0, 1), ylim=(-0.02, 1.02))
    diagram.legend(fontsize=7, loc="upper left")
    bins = len(reliability.images)
    counts.bar((np.arange(bins) + 0.5) / bins, reliability.images, 0.9 / bins, color="C0")
    counts.set(xlabel=name, ylabel="images", yscale="log", xlim=(0, 1), ylim=(0.5, None))


def _detection(figure: Any, outcome: Outcome, train: ArraySource, test: ArraySource) -> None:
    """Draws examples of every set, the distributions of two scores, and the ROC curves of all scores."""
    scores, images = outcome.shown["scores"], outcome.shown["images"]
    figure.set_size_inches(12.5, 0.62 * len(images) + 4.6)
    above, below = figure.subfigures(2, 1, height_ratios=[0.62 * len(images), 4.4])
    _fill(above, [(name, _some(of_set), ()) for name, of_set in images.items()], test.levels)
    panels = below.subplots(1, 3)
    dims = test.images[0].size
    for axes, score, label in zip(
        panels, ("likelihood", "complexity ratio"), ("bits/dim", "bits/dim above a universal code's"), strict=False
    ):
        all_scores = np.concatenate([s[score] for s in scores.values()]) / dims
        all_scores = all_scores[np.isfinite(all_scores)]
        if not len(all_scores):
            axes.text(0.5, 0.5, "not finite", transform=axes.transAxes, ha="center", va="center", color="0.4")
            continue
        low, high = np.percentile(all_scores, [0.5, 97])
        for index, (name, of_set) in enumerate(scores.items()):
            style = {"color": "black", "linewidth": 2.0} if name == "held out" else {"color": f"C{index}"}
            values = np.clip(of_set[score] / dims, low, high)
            axes.hist(values, bins=40, range=(low, high), histtype="step", label=name, **style)
        axes.set(xlabel=label, ylabel="images", yscale="log")
    panels[0].legend(fontsize=7)
    names = list(scores["held out"])
    outside = {score: np.concatenate([s[score] for n, s in scores.items() if n != "held out"]) for score in names}
    for score in names:
        panels[2].plot(*roc_curve(outside[score], scores["held out"][score]), label=score)
    panels[2].plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
    panels[2].set(xlabel="false positive rate (held-out images)", ylabel="true positive rate (all sets)")
    panels[2].legend(fontsize=7, loc="lower right")


def _filtering(figure: Any, outcome: Outcome, train: ArraySource, test: ArraySource) -> None:
    """Draws the examples that each score ranks as most suspicious."""
    contaminated, scores, read = (outcome.shown[name] for name in ("made", "scores", "read"))
    rows = []
    for name, score in scores.items():
        indices = np.argsort(-score)[:_WIDE]
        titles = []
        for index in indices:
            kind = "label" if contaminated.mislabelled[index] else "pixels" if contaminated.damaged[index] else "GOOD"
            titles.append(f"given {contaminated.source.labels[index]}, classified {read[index]}\n{kind}")
        rows.append((name, contaminated.source.images[indices], titles))
    title = "ranked by suspicion_scores; below each: its given label, the likeliest label, and its corruption"
    _rows(figure, title, rows, test.levels)


def _ranked(figure: Any, outcome: Outcome, train: ArraySource, test: ArraySource) -> None:
    """Draws the likeliest and least likely samples of each class; a red frame marks those classified otherwise."""
    samples, right = outcome.shown["drawn"], outcome.shown["right"]
    classes = int(samples.labels.max()) + 1
    groups = {"likeliest": outcome.shown["best"], "least likely": outcome.shown["worst"]}
    per_class = len(outcome.shown["best"]) // classes
    figure.set_size_inches(0.5 * per_class * len(groups) + 1.2, 0.5 * classes + 0.9)
    figure.suptitle("of every class; framed: classified as another class", fontsize=9)
    for part, (name, indices) in zip(figure.subfigures(1, len(groups)), groups.items(), strict=True):
        part.suptitle(name, fontsize=9)
        grid = part.subplots(classes, per_class, squeeze=False)
        for axes, index in zip(grid.ravel(), indices, strict=True):
            _show(axes, samples.images[index], 256)
            for side in axes.spines.values():
                side.set(color="red", linewidth=2.0, visible=not right[index])


def _memorisation(figure: Any, outcome: Outcome, train: ArraySource, test: ArraySource) -> None:
    """Draws the samples that are nearest to training images, and these training images."""
    samples, by_pixels, by_latents = (outcome.shown[name] for name in ("samples", "by_pixels", "by_latents"))
    near = np.argsort(by_pixels["samples"].distance)[:_WIDE]
    new = np.argsort(by_pixels["held_out"].distance)[:_WIDE]
    rows = []
    for name, indices, images in (("samples", near, samples), ("held_out", new, test.images)):
        pixels, latents = by_pixels[name], by_latents[name]
        rows.append((name.replace("_", " "), images[indices], [""] * len(indices)))
        rows.append(("in pixels", train.images[pixels.index[indices]], [f"{d:.2f}" for d in pixels.distance[indices]]))
        rows.append(
            ("in latents", train.images[latents.index[indices]], [f"{d:.2f}" for d in latents.distance[indices]])
        )
    title = "those nearest to the training set, and below each its nearest training image and the distance"
    _rows(figure, title, rows, test.levels)


def _likelihood_ratios(figure: Any, outcome: Outcome, train: ArraySource, test: ArraySource) -> None:
    """Draws images and, below each, its map: red where the first likelihood is higher, blue where the second is."""
    rows = outcome.shown["rows"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    names = {
        "classes": "held out,\ntwo classes",
        "training": "training,\nreference",
        "held out": "held out,\nreference",
    }
    figure.set_size_inches(_WIDE * 1.05 + 1.6, 2.7 * len(kinds) + 0.4)
    figure.suptitle("log2 of likelihood ratios by token; red: the first is likelier", fontsize=9)
    for part, kind in zip(np.atleast_1d(figure.subfigures(len(kinds), 1)), kinds, strict=True):
        of_kind = [row for row in rows if row["kind"] == kind]
        images = (train if kind == "training" else test).images[[row["image"] for row in of_kind]]
        grid = part.subplots(2, max(3, len(of_kind)), squeeze=False)
        _fill_line(grid[0], names[kind], images, [], test.levels)
        maps = np.asarray([row["map"] for row in of_kind], np.float64)
        limit = np.nanmax(np.abs(maps[np.isfinite(maps)]), initial=0.0) or 1.0
        drawn = None
        for axes, row, values in zip(grid[1], of_kind, maps, strict=False):
            drawn = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            of = f"{row['first']} against {row['second']}\n" if kind == "classes" else ""
            axes.set_xlabel(f"{of}{row['bits']:+.1f} bits", fontsize=7)
            axes.set(xticks=[], yticks=[])
        for axes in grid[1][len(of_kind) :]:
            axes.set_axis_off()
        part.colorbar(drawn, ax=grid[1], label="bits").ax.tick_params(labelsize=7)


def _some(images: np.ndarray) -> np.ndarray:
    """Evenly spaced images of a set, which may be sorted."""
    return images[np.unique(np.linspace(0, len(images) - 1, min(_WIDE, len(images))).round().astype(int))]


def _rows(figure: Any, title: str, rows: Sequence[tuple[str, np.ndarray, Sequence[str]]], levels: int) -> None:
    """Draws rows of images under a title, with the name of each row and a caption below each image."""
    columns = max(3, *(len(images) for _, images, _ in rows))
    figure.set_size_inches(columns * 1.05 + 1.0, 1.35 * len(rows) + 0.5)
    figure.suptitle(title, fontsize=9)
    _fill(figure, rows, levels)


def _fill(figure: Any, rows: Sequence[tuple[str, np.ndarray, Sequence[str]]], levels: int, *, columns: int = 3) -> None:
    grid = figure.subplots(len(rows), max(columns, *(len(images) for _, images, _ in rows)), squeeze=False)
    for line, (name, images, titles) in zip(grid, rows, strict=True):
        _fill_line(line, name, images, titles, levels)


def _fill_line(line: Any, name: str, images: np.ndarray, titles: Sequence[str], levels: int) -> None:
    for index, axes in enumerate(line):
        if index >= len(images):
            axes.set_axis_off()
            continue
        _show(axes, images[index], levels)
        if titles:
            axes.set_xlabel(titles[index], fontsize=7)
    line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")


def _show(axes: Any, image: np.ndarray, levels: int) -> None:
    grey = image.shape[-1] != 3
    picture = image[..., 0] if grey else image / (levels - 1)
    axes.imshow(picture, cmap="gray" if grey else None, vmin=0, vmax=levels - 1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
