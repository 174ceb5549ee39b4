"""Scores of models on the same images and the same draws of noise, and a table that compares them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.figures import text_table
from starflow_jax.data import Source
from starflow_jax.evaluation.likelihood.bayes_classifier import Accuracy, bayes_accuracy
from starflow_jax.evaluation.likelihood.gaussian_baseline import ClassConditionalGaussian
from starflow_jax.evaluation.likelihood.image_likelihood import BitsPerDim, all_dequantised, log_probs
from starflow_jax.flows.parameters import Params


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one model on one source.

    Attributes:
      model: name of the model.
      bits_per_dim: from log p(x | true label), or log p(x) where the model reads no label.
      accuracy: of Bayes' rule, None where the model has no classes.
      seconds: time of scoring, compilation included.
    """

    model: str
    bits_per_dim: BitsPerDim
    accuracy: Accuracy | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


def score_flow(
    params: Params,
    config: FlowConfig,
    source: Source,
    key: jax.Array,
    *,
    draws: int,
    batch_size: int = 256,
    model: str = "flow",
    noise_level: float | None = None,
) -> Scores:
    """Scores a flow; arguments as in `image_likelihood.log_probs`."""
    start = time.perf_counter()
    reads_label = bool(config.num_classes or config.text_dim)
    labels = np.arange(source.num_classes, dtype=np.int32) if reads_label else None
    options: dict[str, Any] = {"draws": draws, "batch_size": batch_size, "noise_level": noise_level}
    log_p = log_probs(params, config, source, key, labels=labels, **options)
    return _scores(model, log_p, source, start)


def score_gaussian(
    gaussian: ClassConditionalGaussian,
    source: Source,
    key: jax.Array,
    *,
    draws: int,
    model: str = "class-conditional Gaussian",
) -> Scores:
    """Scores the baseline with the noise that `score_flow` uses for the same key."""
    start = time.perf_counter()
    x = all_dequantised(key, source, draws)
    return _scores(model, np.stack([gaussian.class_log_prob(draw) for draw in x]), source, start)


def _scores(model: str, log_p: np.ndarray, source: Source, start: float) -> Scores:
    """Computes the scores from log densities [draws, n], or [draws, n, classes]."""
    labels = np.asarray([source[index]["label"] for index in range(len(source))], np.int64)
    accuracy = None
    if log_p.ndim == 3:
        accuracy = bayes_accuracy(log_p, labels)
        log_p = np.take_along_axis(log_p, labels[None, :, None], axis=2)[..., 0]
    dims = math.prod(source[0]["image"].shape)
    bits = BitsPerDim.from_log_probs(log_p, dims, source.levels)
    return Scores(model, bits, accuracy, time.perf_counter() - start)


def scores_table(scores: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, also readable as text, of `Scores.to_dict()` values."""
    rows: list[tuple[str, ...]] = [
        ("model", "bits/dim", "s.e. (images)", "s.e. (draws)", "accuracy", "s.e.", "one draw")
    ]
    for score in scores:
        bits, accuracy = score["bits_per_dim"], score["accuracy"]
        shares: tuple[str, ...] = ("-",) * 3
        if accuracy is not None:
            shares = tuple(f"{100 * accuracy[name]:.2f} %" for name in ("mean", "error", "one_draw"))
        errors = (_format_number(bits["image_error"]), _format_number(bits["draw_error"]))
        rows.append((str(score["model"]), _format_number(bits["mean"]), *errors, *shares))
    return text_table(rows)


def _format_number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
