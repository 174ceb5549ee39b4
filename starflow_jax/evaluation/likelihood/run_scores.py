"""Bits/dim and accuracy of a trained run on its own images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.evaluation.evaluation_requests import EvaluateRequest
from starflow_jax.evaluation.likelihood.comparison import Scores, score_flow
from starflow_jax.evaluation.likelihood.scored_source import (
    OnSkipped,
    check_on_pixels,
    ignore_skipped,
    open_scored_source,
    scored_level,
)
from starflow_jax.flows.parameters import Params
from starflow_jax.sharding.layout import Layout
from starflow_jax.training import load_run


@dataclasses.dataclass(frozen=True, eq=False)
class RunScores:
    """Scores of a run.

    Attributes:
      request: that was answered; config: of the run; step: of the checkpoint; ema: whether its moving average was used.
      source_name, images: the data and their number; draws: samples of the noise for each.
      scores: bits/dim and accuracy.
      noise_level: that a noise-conditioned flow read, else None.
    """

    request: EvaluateRequest
    config: ExperimentConfig
    step: int
    ema: bool
    source_name: str
    images: int
    draws: int
    scores: Scores
    noise_level: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "workdir": str(self.request.workdir),
            "step": self.step,
            "split": self.request.split,
            "seed": self.request.seed,
            "ema": self.ema,
            "data": dataclasses.asdict(self.config.data),
            **({} if self.noise_level is None else {"noise_level": self.noise_level}),
            **self.scores.to_dict(),
        }


def evaluate_run(
    request: EvaluateRequest, *, layout: Layout | None = None, on_skipped: OnSkipped = ignore_skipped
) -> RunScores:
    """Scores a run on still images without captions.

    Args:
      layout: of the devices, None for one; on_skipped: called with the examples that could not be read.

    Raises:
      RequestError: a run on clips, on latents or on captions; or a noise level that the flow does not have.
      ValueError: see `load_run` and `open_scored_source`.
    """
    config, _, params, step = load_run(
        request.workdir, ema=request.ema, layout=layout, step=request.step, quantise=request.quantise
    )
    require(
        not config.data.frames,
        "{workdir} must be a run on still images, got one on clips; use starflow score",
    )
    check_on_pixels(config)
    if config.data.text_encoder is not None:
        raise RequestError(
            "{workdir} must be a run without captions, got one with captions (read by {0}); use starflow score",
            config.data.text_encoder,
        )
    return score_params(request, config, params, step, on_skipped=on_skipped)


def score_params(
    request: EvaluateRequest,
    config: ExperimentConfig,
    params: Params,
    step: int,
    *,
    on_skipped: OnSkipped = ignore_skipped,
) -> RunScores:
    """Scores a run like `evaluate_run`, with parameters that were loaded before."""
    noise_level = scored_level(config, request.noise_level)
    source = open_scored_source(config, request.split, on_skipped=on_skipped)
    draws = request.draws or config.evaluate.draws
    scores = score_flow(
        params,
        config.flow,
        source,
        jax.random.key(request.seed),
        draws=draws,
        batch_size=request.batch or config.evaluate.batch_size,
        model=config.name,
        noise_level=noise_level,
    )
    ema = bool(config.train.ema) and request.ema
    return RunScores(request, config, step, ema, source.name, len(source), draws, scores, noise_level)
