"""How well log p(x) tells data of the trained kind from others, and what a condition is worth, example by example."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.evaluation.likelihood import standard_error
from starflow_jax.evaluation.roc import Auroc, auroc, roc_curve
from starflow_jax.sweeps.results import read_examples

Row = Mapping[str, Any]
# What must agree between cells that are compared over data.
_SAME_MODEL = ("run", "step", "noise", "sigma", "dtype")


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


def separations(out: Path, rows: Sequence[Row]) -> list[Separation]:
    """Every outside cell against the inside cells of its checkpoint, noise and type.

    log p is averaged over the draws of an example, and compared under one condition.
    """
    found = []
    for outside in (row for row in rows if row["role"] == "out"):
        inside = [row for row in rows if row["role"] == "in" and _same(row, outside, _SAME_MODEL)]
        inside = [row for row in inside if row["condition"] == outside["condition"]]
        if not inside:
            continue
        kept, rest = _scores(out, inside), _scores(out, [outside])
        if not len(kept) or not len(rest):
            continue
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


def differences(out: Path, rows: Sequence[Row], field: str, than: str) -> list[Difference]:
    """Cells against those that differ from them in `field` alone, where it is `than`.

    Args:
      field: "condition" or "dtype".
    """
    same = [name for name in ("run", "step", "data", "noise", "sigma", "condition", "dtype") if name != field]
    found = []
    for row in rows:
        other = next((one for one in rows if one[field] == than and _same(one, row, same)), None)
        if row[field] == than or other is None:
            continue
        mine, others = example_bits(out, row), example_bits(out, other)
        if mine is None or others is None:
            continue
        apart = mine - others
        apart = apart[np.isfinite(apart)]
        if not len(apart):
            continue
        largest = float(np.abs(apart).max())
        found.append(Difference(row, than, float(apart.mean()), standard_error(apart), largest))
    return found


def example_bits(out: Path, row: Row) -> np.ndarray | None:
    """Of every example in the unit of the row, draws averaged, float64 [n]; None where the file is gone."""
    try:
        log_prob = read_examples(out, row["cell"])["log_prob"].mean(axis=1)
    except ValueError:
        return None
    constant = math.log2(row["levels"] / 2.0) if row["levels"] else 0.0
    return constant - log_prob / (row["dims"] * math.log(2.0))


def _scores(out: Path, rows: Sequence[Row]) -> np.ndarray:
    """log p of every example of some cells, nats."""
    parts = []
    for row in rows:
        try:
            parts.append(read_examples(out, row["cell"])["log_prob"].mean(axis=1))
        except ValueError:
            continue
    found = np.concatenate(parts) if parts else np.zeros(0)
    return np.nan_to_num(found, nan=np.finfo(np.float64).min)  # what is not finite is all but impossible


def _same(a: Row, b: Row, fields: Sequence[str]) -> bool:
    return all(a[name] == b[name] for name in fields)
