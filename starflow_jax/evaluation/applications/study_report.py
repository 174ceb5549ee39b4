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
        "mistakes, and the reliability diagram (Guo et al., arXiv 1706.04599): the share of right predictions in ten "
        "bins of their probability, which calibrated probabilities put on the diagonal, give or take the grey bars "
        "(two standard deviations). The calibration errors are the mean of the distance over images and its maximum "
        "over bins. One pass: the argmax of the gradient of log p(x | all classes alike) with respect to the logits of "
        "the classes, by one forward and one backward pass; agreement is the share of images that both rules give the "
        "same class. Times are of one draw, compiled.",
    ),
    "out_of_distribution": (
        "Out-of-distribution images",
        "AUROC of scores that should be high for out-of-distribution images, against held-out ones; 0.5 is "
        "chance, and below 0.5 the score prefers out-of-distribution images. The plain likelihood is not a reliable "
        "detector: simple images may be likelier than all training images (Nalisnick et al., arXiv 1810.09136). "
        "Typicality (1906.02994) is the distance of the bits from their mean over training images; the ratios "
        "subtract the bits of a model of independent pixels (1906.02845), of a universal code (1909.11480) or of the "
        "reference run. The second table is the test of typicality (1906.02994, algorithm 1): the share of batches "
        "whose mean bits are farther from those of training images than 99 % of batches of held-out images are.",
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
        "images. With a reference run, membership by the ratio of both likelihoods, log2 p(x) - log2 p_reference(x) "
        "for each dimension (2111.08440), and the share of training images that are found where 1 % of held-out images "
        "are taken for training images, by the ratio and by likelihood alone.",
    ),
    "likelihood_ratios": (
        "Maps of likelihood ratios",
        "log2 of the ratio of two likelihoods, split over the tokens of an image (after Ren et al., arXiv 1906.02845): "
        "of the two most probable classes of the held-out images that are least sure, and of the run and the reference "
        "on the images where they differ most. Logarithms are averaged over draws of the noise, while classes are "
        "ranked by averaged densities. The sum over tokens is exact; in a flow of several blocks the share of a token "
        "is no conditional density.",
    ),
}


def tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """A table for every application that `figures` has, by name."""
    makers = {
        "classification": _classification,
        "out_of_distribution": _out_of_distribution,
        "filtering": lambda part: filtering_table(part["rows"]),
        "ranked_sampling": _ranked,
        "memorisation": _memorisation,
        "likelihood_ratios": _likelihood_ratios,
    }
    return {name: make(figures[name]) for name, make in makers.items() if name in figures}


def markdown(figures: Mapping[str, Any]) -> str:
    """The text of `report.md`."""
    parts = []
    for name, table in tables(figures).items():
        title, text = _TEXTS[name]
        parts.append(f"## {title}\n\n{text}\n\n{table}\n\n![{title.lower()}]({name}.png)\n")
    reference = f" Reference run: step {figures['reference_step']}." if "reference" in figures else ""
    head = (
        f"# Applications of exact likelihood\n\nStep {figures['step']}, {figures['train']:,} training images, "
        f"{figures['test']:,} held-out ones, {figures['draws']} draws of the noise each, seed {figures['seed']}."
        f"{reference}\n"
    )
    return "\n".join([head, *parts])


def _classification(part: Mapping[str, Any]) -> str:
    accuracy = part["accuracy"]
    share = f"{100 * accuracy['mean']:.1f} % +- {100 * accuracy['error']:.1f}"
    rows = [("classification", "accuracy", "correct", "calibration error: mean", "maximum", "agreement", "ms/image")]
    counts = f"{accuracy['correct']} of {accuracy['images']}"
    fast = part["one_pass"]
    times = (f"{1000 * fast[name]:.3g}" for name in ("bayes_seconds_per_image", "seconds_per_image"))
    mean, most = (f"{100 * part['reliability'][name]:.1f} %" for name in ("expected_error", "maximum_error"))
    rows.append(("Bayes rule", share, counts, mean, most, "-", next(times)))
    share = f"{100 * fast['accuracy']:.1f} % +- {100 * fast['error']:.1f}"
    counts = f"{fast['correct']} of {accuracy['images']}"
    rows.append(("one pass", share, counts, "-", "-", f"{100 * fast['agreement']:.1f} %", next(times)))
    return text_table(rows)


def _out_of_distribution(part: Mapping[str, Any]) -> str:
    tests = part["typicality_tests"]
    rows = [("atypical batches", *(f"of {test['size']}" for test in tests))]
    for name in tests[0]["atypical"]:
        rows.append((name, *(f"{100 * test['atypical'][name]:.1f} %" for test in tests)))
    return f"{detection_table(part['sets'])}\n\n{text_table(rows)}"


def _likelihood_ratios(part: Mapping[str, Any]) -> str:
    rows = [("likelihood ratio", "image", "label", "bits", "tokens above 0")]
    for row in part["rows"]:
        what = {"classes": "held out, {first} against {second}"}.get(row["kind"], "{kind}, run against reference")
        values = [value for line in row["map"] for value in line]
        above = f"{sum(value is not None and value > 0 for value in values)} of {len(values)}"
        bits = "-" if row["bits"] is None else f"{row['bits']:.2f}"
        rows.append((what.format(**row), str(row["image"]), str(row["label"]), bits, above))
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
    if (ratio := part.get("ratio_membership")) is None:
        return text_table(rows)
    area, lost = ratio["area"], str(ratio["not_finite"])
    areas = f"{area['area']:.3f} +- {area['error']:.3f}"
    train, held_out = (_format_number(ratio[name]) for name in ("train", "held_out"))
    rows.append(("ratio to the reference, bits/dim", train, held_out, lost, areas))
    found = [("training images found at 1 % false positives", "share")]
    found.append(("by the ratio to the reference", f"{100 * ratio['found']:.1f} %"))
    found.append(("by likelihood", f"{100 * ratio['found_by_likelihood']:.1f} %"))
    return f"{text_table(rows)}\n\n{text_table(found)}"


def _format_number(value: float | None) -> str:
    """A mean or a median; "-" for one that is not finite (None in JSON)."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1e5 else f"{value:.3e}"
