"""How well log p(x) tells data of the trained kind from others, and what a condition is worth, example by example."""

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
    """One data set from outside against all from inside, under one checkpoint.

    Attributes:
      row: of the outside cell; inside: names of the data sets inside.
      auroc: probability that an inside example has the larger log p(x) (ties count half), and its standard error.
      false_positives, true_positives: the ROC: shares of outside and inside examples above every threshold.
    """

    row: Row
    inside: tuple[str, ...]
    auroc: Auroc
    false_positives: np.ndarray
    true_positives: np.ndarray


def key_of(row: Row, *without: str) -> tuple[Any, ...]:
    """What tells a row from all others of a sweep. Its id does not: a cell may have several names."""
    return tuple(row[name] for name in _KEY if name not in without)


def read_scores(out: Path, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """log p of every example in nats, draws averaged, float64 [n], by cell; those without whose file is gone.

    Every file is read once. What is not finite is NaN or an infinity.
    """
    found = {}
    for cell in dict.fromkeys(row["cell"] for row in rows):
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                found[cell] = read_examples(out, cell)["log_prob"].mean(axis=1)
        except ValueError:
            continue
    return found


def separations(rows: Sequence[Row], scores: Mapping[str, np.ndarray]) -> list[Separation]:
    """Every outside cell against the inside cells of its checkpoint, noise and type, under one condition.

    One that lacks the examples of a cell is left out: over the rest it would be another number.

    Args:
      scores: log p of every example, by cell (`read_scores`).
    """
    insides: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["role"] == "in":
            insides.setdefault(key_of(row, "data"), []).append(row)
    found = []
    for outside in (row for row in rows if row["role"] == "out"):
        inside = insides.get(key_of(outside, "data"), [])
        if not inside or any(row["cell"] not in scores for row in (outside, *inside)):
            continue
        kept = _ordered(np.concatenate([scores[row["cell"]] for row in inside]))
        rest = _ordered(scores[outside["cell"]])
        names = tuple(row["data"] for row in inside)
        found.append(Separation(outside, names, auroc(kept, rest), *roc_curve(kept, rest)))
    return found


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two cells of the same examples and draws, subtracted example by example.

    Attributes:
      row: of the cell that is subtracted from; than: what the other one had instead ("true", "float32").
      mean, error: of (this - other) in the unit of the row, and its standard error over examples (those that are
        finite in both).
      largest: of the absolute differences of single examples.
    """

    row: Row
    than: str
    mean: float
    error: float
    largest: float


def differences(rows: Sequence[Row], scores: Mapping[str, np.ndarray], field: str, than: str) -> list[Difference]:
    """Cells against those that differ from them in `field` alone, where it is `than`.

    Args:
      scores: log p of every example, by cell (`read_scores`); field: "condition" or "dtype".
    """
    others = {key_of(row, field): row for row in rows if row[field] == than}
    found = []
    for row in rows:
        other = others.get(key_of(row, field))
        if row[field] == than or other is None or not {row["cell"], other["cell"]} <= scores.keys():
            continue
        with np.errstate(invalid="ignore"):
            apart = in_unit(row, scores[row["cell"]]) - in_unit(other, scores[other["cell"]])
        apart = apart[np.isfinite(apart)]
        if not len(apart):
            continue
        largest = float(np.abs(apart).max())
        found.append(Difference(row, than, float(apart.mean()), standard_error(apart), largest))
    return found


def in_unit(row: Row, log_prob: np.ndarray) -> np.ndarray:
    """Log densities of single examples in the unit of the row."""
    constant = math.log2(row["levels"] / 2.0) if row["levels"] else 0.0
    return constant - log_prob / (row["dims"] * math.log(2.0))


def _ordered(scores: np.ndarray) -> np.ndarray:
    return np.nan_to_num(scores, nan=np.finfo(np.float64).min)  # what is not finite is all but impossible
