"""Out-of-distribution detection by log p(x), and differences between cells example by example."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.evaluation.applications.roc import Auroc, auroc, roc_curve
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.sweeps.results import read_examples

Row = Mapping[str, Any]
_KEY = ("run", "step", "data", "noise", "sigma", "condition", "dtype")


@dataclasses.dataclass(frozen=True, eq=False)
class Separation:
    """One out-of-distribution data set against all in-distribution data sets of a checkpoint.

    Attributes:
      row: of the out-of-distribution cell; inside: names of the in-distribution data sets.
      auroc: probability that an in-distribution example has the larger log p(x), ties counting half, with its error.
      false_positives, true_positives: the ROC curve, shares of out-of- and in-distribution examples above thresholds.
    """

    row: Row
    inside: tuple[str, ...]
    auroc: Auroc
    false_positives: np.ndarray
    true_positives: np.ndarray


def row_key(row: Row, *without: str) -> tuple[Any, ...]:
    """The fields that identify a row of a sweep. The cell id does not, because a cell may have several names."""
    return tuple(row[name] for name in _KEY if name not in without)


def read_scores(out: Path, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """log p of every example in nats, averaged over draws, float64 [n], by cell, without cells whose file is missing.

    Every file is read once. Values may be NaN or infinite.
    """
    scores = {}
    for cell in dict.fromkeys(row["cell"] for row in rows):
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                scores[cell] = read_examples(out, cell)["log_prob"].mean(axis=1)
        except ValueError:
            continue
    return scores


def separations(rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> list[Separation]:
    """Compares out-of-distribution cells with in-distribution cells that differ in the data only.

    A comparison is left out where the examples of one of its cells are missing.

    Args:
      scores: log p of every example, by cell (`read_scores`).
    """
    in_distribution: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["role"] == "in":
            in_distribution.setdefault(row_key(row, "data"), []).append(row)
    separated = []
    for outside in (row for row in rows if row["role"] == "out"):
        in_rows = in_distribution.get(row_key(outside, "data"), [])
        if not in_rows or any(row["cell"] not in scores for row in (outside, *in_rows)):
            continue
        inside_scores = _ordered(np.concatenate([scores[row["cell"]] for row in in_rows]))
        outside_scores = _ordered(scores[outside["cell"]])
        names = tuple(row["data"] for row in in_rows)
        separated.append(
            Separation(outside, names, auroc(inside_scores, outside_scores), *roc_curve(inside_scores, outside_scores))
        )
    return separated


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two cells with the same examples and draws, example by example.

    Attributes:
      row: of the cell; than: the value of the other cell's field ("true", "float32").
      mean, error: of (this - other) in the unit of the row, and its standard error, over examples finite in both.
      largest: the largest absolute difference of an example.
    """

    row: Row
    than: str
    mean: float
    error: float
    largest: float


def differences(rows: Sequence[Row], scores: Mapping[str, np.ndarray], field: str, than: str) -> list[Difference]:
    """Differences between cells and those with the same fields except that `field` is `than`.

    Args:
      scores: log p of every example, by cell (`read_scores`); field: "condition" or "dtype".
    """
    others = {row_key(row, field): row for row in rows if row[field] == than}
    compared = []
    for row in rows:
        other = others.get(row_key(row, field))
        if row[field] == than or other is None or not {row["cell"], other["cell"]} <= scores.keys():
            continue
        with np.errstate(invalid="ignore"):
            difference = in_unit(row, scores[row["cell"]]) - in_unit(other, scores[other["cell"]])
        difference = difference[np.isfinite(difference)]
        if not len(difference):
            continue
        largest = float(np.abs(difference).max())
        compared.append(Difference(row, than, float(difference.mean()), standard_error(difference), largest))
    return compared


def in_unit(row: Row, log_prob: np.ndarray) -> np.ndarray:
    """Log densities of single examples, converted to the unit of the row."""
    constant = math.log2(row["levels"] / 2.0) if row["levels"] else 0.0
    return constant - log_prob / (row["dims"] * math.log(2.0))


def _ordered(scores: np.ndarray) -> np.ndarray:
    return np.nan_to_num(scores, nan=np.finfo(np.float64).min)  # values that are not finite rank as the least likely
