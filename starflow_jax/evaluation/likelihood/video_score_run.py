"""Likelihood of clips under a trained run: clips of its data, or video files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import require
from starflow_jax.evaluation.evaluation_requests import ScoreRequest
from starflow_jax.evaluation.likelihood.scored_source import (
    OnSkipped,
    check_on_pixels,
    ignore_skipped,
    open_scored_source,
)
from starflow_jax.evaluation.likelihood.video_scores import (
    Clip,
    ClipLikelihood,
    file_pixels,
    score_clips,
    source_clips,
)
from starflow_jax.media import read_video
from starflow_jax.sampling.videos.video_plan import caption_reader, later_text, text_states
from starflow_jax.sharding.layout import Layout
from starflow_jax.training import load_run
from starflow_jax.training.step.inputs import condition


@dataclasses.dataclass(frozen=True, eq=False)
class VideoScores:
    """Scores of clips.

    Attributes:
      config: of the run; step: of the checkpoint; draws: samples of the noise for every clip; clips: their scores.
    """

    config: ExperimentConfig
    step: int
    draws: int
    clips: list[ClipLikelihood]


def score_videos(
    request: ScoreRequest, *, layout: Layout | None = None, on_skipped: OnSkipped = ignore_skipped
) -> VideoScores:
    """Scores clips by clip, frame and token.

    Args:
      layout: of the devices, None for one; on_skipped: called with the examples that could not be read.

    Raises:
      RequestError: clips or captions that the run cannot read.
      ValueError: see `load_run`, `read_video`, `open_scored_source` and `video_scores.check_request`.
    """
    config, _, params, step = load_run(
        request.workdir, ema=request.ema, layout=layout, step=request.step, quantise=request.quantise
    )
    check_on_pixels(config)
    if request.video:
        clips = video_clips(request.video, request.caption or ("",), config)
    else:
        split, num = request.split or "test", request.num or 16
        source = open_scored_source(config, split, num, on_skipped)
        clips = source_clips(source, config, min(num, len(source)), name=split)
    draws = request.draws or config.evaluate.draws
    scores = score_clips(
        params,
        config,
        clips,
        jax.random.key(request.seed),
        draws=draws,
        batch_size=request.batch,
        context=request.context,
    )
    return VideoScores(config, step, draws, scores)


def video_clips(paths: Sequence[Path], captions: Sequence[str], config: ExperimentConfig) -> list[Clip]:
    """Video files as clips of the size and channels of the run's data.

    Args:
      captions: one for all files or one for each.

    Raises:
      RequestError: a run on still images, or captions for a run that reads none.
      ValueError: see `read_video`, `caption_reader` and `text_states`.
    """
    require(bool(config.data.frames), "{video} needs a run on video, got one on still images")
    captions = list(captions) * (len(paths) if len(captions) == 1 else 1)
    later: Any = None
    if config.reads_captions:
        reader = caption_reader(config)
        states: Any = text_states(config, captions, reader)
        later = later_text(config, captions, reader)
    else:
        require(not any(captions), "{caption} needs a run that reads captions, got one that does not")
        states = condition(jnp.full(len(paths), -1, jnp.int32), config.flow)
    clips = []
    for index, (path, caption) in enumerate(zip(paths, captions, strict=True)):
        frames = read_video(
            path, size=config.flow.image_shape, channels=config.flow.channels, background=config.data.background
        ).frames
        pixels, levels = file_pixels(frames, config.data)
        cond, later_cond = (None if rows is None else np.asarray(rows[index]) for rows in (states, later))
        clips.append(Clip(path.name, caption, pixels, levels, cond, later_cond))
    return clips
