"""Held-out log-likelihood of vectors, which are scored as they are: nothing is dequantised."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.figures import text_table
from starflow_jax.core.storage.copies import local_path, without_optimizer
from starflow_jax.data.pipeline.batch_assembly import stacked
from starflow_jax.evaluation.evaluation_requests import EvaluateRequest
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.evaluation.likelihood.scored_source import scored_level
from starflow_jax.sampling.ranking import log_likelihoods
from starflow_jax.sharding.layout import Layout
from starflow_jax.training import load_run, open_source
from starflow_jax.training.checkpoints.workdir import read_config
from starflow_jax.training.step.inputs import check_source, condition, noisy_pixels


@dataclasses.dataclass(frozen=True)
class VectorScores:
    """Scores of a run on vectors.

    Attributes:
      workdir, step, split: what was scored; source: name of the data.
      vectors: their number; dims: numbers in each, without padding and on average.
      log_likelihood: mean of log p(x | label) in nats, of a flow without classes log p(x).
      error: its standard error over vectors; NaN for one vector.
      accuracy: share of the vectors whose label has the highest log p(x | label); None without classes.
      seconds: time of scoring, compilation included.
    """

    workdir: str
    step: int
    split: str
    source: str
    vectors: int
    dims: float
    log_likelihood: float
    error: float
    accuracy: float | None
    seconds: float

    @property
    def bits_per_dim(self) -> float:
        """-log2 of the density of all vectors together, over the count of their numbers without padding."""
        return -self.log_likelihood / (self.dims * math.log(2))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "bits_per_dim": self.bits_per_dim}

    def table(self) -> str:
        """A Markdown table, also readable as text."""
        accuracy = "-" if self.accuracy is None else f"{100 * self.accuracy:.2f} %"
        header = ("data", "log-likelihood (nats)", "s.e.", "bits/dim", "accuracy")
        return text_table(
            [
                header,
                (self.source, f"{self.log_likelihood:.4f}", f"{self.error:.4f}", f"{self.bits_per_dim:.4f}", accuracy),
            ]
        )


def is_run_on_vectors(workdir: Path) -> bool:
    """Whether a folder contains a run on vectors; False where it contains none."""
    config = read_config(local_path(workdir, without_optimizer))
    return config is not None and config.data.traits.vectors


def evaluate_vectors(request: EvaluateRequest, *, layout: Layout | None = None) -> VectorScores:
    """Scores the vectors of a split, those of a run with Gaussian noise with one draw of that noise.

    Args:
      layout: of the devices, None for one.

    Raises:
      RequestError: a noise level for a flow without.
      ValueError: see `load_run`; data that are missing or do not fit the flow.
    """
    start = time.perf_counter()
    config, _, params, step = load_run(
        request.workdir, ema=request.ema, layout=layout, step=request.step, quantise=request.quantise
    )
    level = None if request.noise_level is None else scored_level(config, request.noise_level)
    source = open_source(config.data, request.split, flow=config.flow, text=config.text)
    check_source(source, config.flow, config.text)
    batch = stacked([source[index] for index in range(len(source))])
    key = jax.random.key(request.seed)
    x = np.asarray(noisy_pixels(key, jax.numpy.asarray(batch["image"]), 0, config.data))
    labels, size = batch["label"], request.batch or config.evaluate.batch_size
    count = config.flow.num_classes or config.flow.text_dim

    options: dict[str, Any] = {"batch_size": size, "noise_level": level, "lengths": batch.get("length")}

    def scores(given: np.ndarray) -> np.ndarray:
        cond = condition(jax.numpy.asarray(given), config.flow)
        cond_array = None if cond is None else np.asarray(cond)
        return log_likelihoods(params, config.flow, x, cond_array, **options).astype(np.float64)

    log_p, accuracy = scores(labels), None
    if count:
        by_class = np.stack([scores(np.full_like(labels, label)) for label in range(count)])
        accuracy = float(np.mean(by_class.argmax(axis=0) == labels))
    dims = x[0].size
    if "length" in batch:
        dims = float(batch["length"].mean()) * x.shape[-1]
    return VectorScores(
        workdir=str(request.workdir),
        step=step,
        split=request.split,
        source=source.name,
        vectors=len(x),
        dims=dims,
        log_likelihood=float(log_p.mean()),
        error=standard_error(log_p),
        accuracy=accuracy,
        seconds=time.perf_counter() - start,
    )
