"""The outcomes of `likelihood_study` as tables and as a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starflow_jax.core.figures import text_table
from starflow_jax.evaluation.applications.filtering import filtering_table
from starflow_jax.evaluation.applications.out_of_distribution import detection_table

_TEXTS = {
    "classification": (
        "Classification",
        "argmax over classes y of p(x | y), densities averaged over draws of the noise; below, the most confident "
        "mistakes. One pass: the argmax of the gradient of log p(x | all classes alike) with respect to the logits of "
        "the classes, by one forward and one backward pass; agreement is the share of images that both rules give the "
        "same class. Times are of one draw, compiled.",
    ),
    "out_of_distribution": (
        "Out-of-distribution images",
        "AUROC of four scores that should be high for out-of-distribution images, against held-out ones; 0.5 is "
        "chance, and below 0.5 the score prefers out-of-distribution images. The plain likelihood is not a reliable "
        "detector: simple images may be likelier than all training images (Nalisnick et al., arXiv 1810.09136). "
        "Typicality (1906.02994) is the distance of the bits from their mean over training images; the ratios "
        "subtract the bits of a model of independent pixels (1906.02845) or of a universal code (1909.11480).",
    ),
    "filtering": (
        "Filtering of data",
        "Some labels were exchanged and some images damaged. Ranked by -log p(x) (image), by how much better another "
        "class explains the image (label), and by -log p(x | y) (example): the share of bad examples among the first "
        "k, where k is their number.",
    ),
    "ranked_sampling": (
        "Likelihood-ranked sampling",
        "Samples of every class without guidance, ranked by log p(x | y) and classified by a support-vector machine "
        "trained on the training images. Diversity: the mean distance of two kept images of a class, which ranking "
        "reduces.",
    ),
    "memorisation": (
        "Memorisation",
        "Membership: AUROC of likelihood, training images against held-out ones; 0.5 means that they cannot be "
        "distinguished. Copies: distances to the nearest training image (root mean squares; of latents, among images "
        "of the class) of samples and of held-out images; an AUROC above 0.5 means that samples are nearer than new "
        "images.",
    ),
}


def tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """A table for every application that `figures` has, by name."""
    makers = {
        "classification": _classification,
        "out_of_distribution": lambda part: detection_table(part["sets"]),
        "filtering": lambda part: filtering_table(part["rows"]),
        "ranked_sampling": _ranked,
        "memorisation": _memorisation,
    }
    return {name: make(figures[name]) for name, make in makers.items() if name in figures}


def markdown(figures: Mapping[str, Any]) -> str:
    """The text of `report.md`."""
    parts = []
    for name, table in tables(figures).items():
        title, text = _TEXTS[name]
        parts.append(f"## {title}\n\n{text}\n\n{table}\n\n![{title.lower()}]({name}.png)\n")
    head = (
        f"# Applications of exact likelihood\n\nStep {figures['step']}, {figures['train']:,} training images, "
        f"{figures['test']:,} held-out ones, {figures['draws']} draws of the noise each, seed {figures['seed']}.\n"
    )
    return "\n".join([head, *parts])


def _classification(part: Mapping[str, Any]) -> str:
    accuracy = part["accuracy"]
    share = f"{100 * accuracy['mean']:.1f} % +- {100 * accuracy['error']:.1f}"
    rows = [("classification", "accuracy", "correct", "calibration error", "agreement", "ms/image")]
    counts = f"{accuracy['correct']} of {accuracy['images']}"
    fast = part["one_pass"]
    times = (f"{1000 * fast[name]:.3g}" for name in ("bayes_seconds_per_image", "seconds_per_image"))
    rows.append(("Bayes rule", share, counts, f"{100 * part['calibration_error']:.1f} %", "-", next(times)))
    share = f"{100 * fast['accuracy']:.1f} % +- {100 * fast['error']:.1f}"
    counts = f"{fast['correct']} of {accuracy['images']}"
    rows.append(("one pass", share, counts, "-", f"{100 * fast['agreement']:.1f} %", next(times)))
    return text_table(rows)


def _ranked(part: Mapping[str, Any]) -> str:
    rows = [("samples", "images", "class recognised", "diversity")]
    for row in part["rows"]:
        share = f"{100 * row['recognised']:.1f} % +- {100 * row['error']:.1f}"
        name = row["kept"] if row["kept"] == "all" else f"{row['kept']} {part['keep']} of {part['candidates']}"
        rows.append((name, str(row["pictures"]), share, f"{row['diversity']:.3f}"))
    return text_table(rows)


def _memorisation(part: Mapping[str, Any]) -> str:
    member, rows = part["membership"], [("memorisation", "training or samples", "held out", "not finite", "AUROC")]
    area, lost = member["area"], str(member["not_finite"])
    areas = f"{area['area']:.3f} +- {area['error']:.3f}"
    rows.append(
        ("bits/dim, training images", _format_number(member["train"]), _format_number(member["held_out"]), lost, areas)
    )
    for kind in ("pixels", "latents"):
        copying = part[kind]
        area = copying["area"]
        areas = f"{area['area']:.3f} +- {area['error']:.3f}"
        name = f"distance in {kind}, samples"
        lost = str(copying["not_finite"])
        rows.append((name, _format_number(copying["samples"]), _format_number(copying["held_out"]), lost, areas))
    return text_table(rows)


def _format_number(value: float | None) -> str:
    """A mean or a median; "-" for one that is not finite (None in JSON)."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1e5 else f"{value:.3e}"
