"""Maps of likelihood ratios on the images of a run: two classes of one image, and the run against a second one."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from starflow_jax.evaluation.applications.likelihood_study import Outcome, Reference, StudiedRun, posterior
from starflow_jax.evaluation.applications.ratio_maps import difference, token_map

SHOWN = 12  # images of every kind


def likelihood_ratios(
    run: StudiedRun, train: np.ndarray, test: np.ndarray, reference: Reference | None = None
) -> Outcome | None:
    """Maps of the images for which a ratio says most.

    - "classes": the held-out images whose class is least sure, log2 p(x | first) - log2 p(x | second), of the two most
      probable classes (runs with classes).
    - "training", "held out": the images whose likelihood exceeds that under the reference by most,
      log2 p(x | y) - log2 p_reference(x | y), y being the image's own class.

    Args:
      train, test: log p(x | y) of `run.train` and `run.test`; reference: a second run, or None.

    Returns:
      None for a run without classes and without a reference, which has nothing to compare.
    """
    rows: list[dict[str, Any]] = []
    if test.shape[2] > 1:
        rows += _of_classes(run, test)
    if reference is not None:
        bits = (reference.train - run.bits(train, run.train), reference.test - run.bits(test, run.test))
        rows += _of_runs(run, reference, "training", bits[0])
        rows += _of_runs(run, reference, "held out", bits[1])
    return Outcome("likelihood_ratios", {"rows": rows}, {"rows": rows}) if rows else None


def _of_classes(run: StudiedRun, test: np.ndarray) -> list[dict[str, Any]]:
    probabilities = posterior(test)
    indices = np.argsort(probabilities.max(axis=1), kind="stable")[:SHOWN]
    ranked = np.argsort(-probabilities[indices], axis=1, kind="stable")
    one, other = (_mapped(run, "held out", indices, ranked[:, place]) for place in (0, 1))
    return [
        _row("classes", run, "held out", int(index), ratio, first=int(best[0]), second=int(best[1]))
        for index, ratio, best in zip(indices, difference(one, other), ranked, strict=True)
    ]


def _of_runs(run: StudiedRun, reference: Reference, split: str, bits: np.ndarray) -> list[dict[str, Any]]:
    """The images of a split with the highest finite ratio; bits: log2 p(x) - log2 p_reference(x), [n]."""
    indices = np.argsort(-np.where(np.isfinite(bits), bits, -np.inf), kind="stable")[:SHOWN]
    labels = _images(run, split).labels[indices]
    one, other = (_mapped(model, split, indices, labels) for model in (run, reference.run))
    return [
        _row(split, run, split, int(index), ratio) for index, ratio in zip(indices, difference(one, other), strict=True)
    ]


def _images(run: StudiedRun, split: str) -> Any:
    return run.train if split == "training" else run.test


def _mapped(run: StudiedRun, split: str, indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    key = jax.random.fold_in(run.key, 0 if split == "training" else 1)  # the noise of the scores of this split
    options: dict[str, Any] = {"draws": run.draws, "noise_level": run.noise_level}
    return token_map(run.params, run.config.flow, _images(run, split), key, indices, labels, **options)


def _row(kind: str, run: StudiedRun, split: str, index: int, ratio: np.ndarray, **classes: int) -> dict[str, Any]:
    """The map of one image as plain values; bits: the sum of the map."""
    label = int(_images(run, split).labels[index])
    return {"kind": kind, "image": index, "label": label, **classes, "bits": float(ratio.sum()), "map": ratio.tolist()}
