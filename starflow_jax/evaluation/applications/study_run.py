"""All applications of exact likelihood on a trained run, with their report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.atomic_writing import replacing_folder
from starflow_jax.core.choices import Split
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.figures import finite
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.data.sources.base import ArraySource
from starflow_jax.evaluation.applications import likelihood_study
from starflow_jax.evaluation.applications.likelihood_study import Outcome, Reference, StudiedRun
from starflow_jax.evaluation.applications.ratio_study import likelihood_ratios
from starflow_jax.evaluation.applications.study_plots import draw_outcome
from starflow_jax.evaluation.applications.study_report import markdown
from starflow_jax.evaluation.evaluation_requests import StudyRequest
from starflow_jax.evaluation.likelihood.scored_source import (
    OnSkipped,
    check_on_pixels,
    ignore_skipped,
    open_scored_source,
    scored_level,
)
from starflow_jax.sampling import class_labels, sample
from starflow_jax.training import load_run

DRAWS = 4  # samples of the noise for every image, where the request names none


@dataclasses.dataclass(frozen=True, eq=False)
class StudyResult:
    """Outcomes of a study.

    Attributes:
      outcomes: of the applications; train, test: the images; step: of the checkpoint; draws: samples of the noise.
      values: all numbers as plain values, for JSON and the report.
    """

    outcomes: list[Outcome]
    train: ArraySource
    test: ArraySource
    step: int
    draws: int
    values: Mapping[str, Any]


def run_study(request: StudyRequest, *, on_skipped: OnSkipped = ignore_skipped) -> StudyResult:
    """Runs every application that the run allows; those that read classes are left out for a run without.

    Args:
      on_skipped: called with the examples that could not be read.

    Raises:
      RequestError: a run on clips, latents or captions, a class without a training image, a noise level that the
        flow does not have, or a reference whose images or classes are others.
      ValueError: see `load_run` and `open_scored_source`.
    """
    config, _, params, step = load_run(request.workdir, ema=request.ema, step=request.step)
    check_on_pixels(config)
    require(
        _is_plain(config), "{workdir} must be a run on still images without captions; use starflow score for others"
    )
    noise_level = scored_level(config, request.noise_level)
    train, test = (_in_memory(config, split, request.num, on_skipped) for split in ("train", "test"))
    _check_classes(config, train, test)
    draws = request.draws or DRAWS
    studied = StudiedRun(params, config, train, test, jax.random.key(request.seed), draws, noise_level)
    reference, reference_step = _reference_run(studied, request)
    outcomes = _outcomes(studied, request, None if reference is None else Reference.of(reference))
    values = {
        "workdir": str(request.workdir),
        "step": step,
        "seed": request.seed,
        "draws": draws,
        **({} if noise_level is None else {"noise_level": noise_level}),
        **({} if reference is None else {"reference": str(request.reference), "reference_step": reference_step}),
        "train": len(train),
        "test": len(test),
        **{outcome.name: outcome.figures for outcome in outcomes},
    }
    return StudyResult(outcomes, train, test, step, draws, finite(values))


def write_study(out: Path, result: StudyResult) -> None:
    """Writes report.md and one PNG file for every outcome into a new folder."""
    with replacing_folder(out) as folder:
        for outcome in result.outcomes:
            draw_outcome(outcome, result.train, result.test, folder / f"{outcome.name}.png")
        (folder / "report.md").write_text(markdown(result.values), encoding="utf-8")


def _is_plain(config: ExperimentConfig) -> bool:
    """Whether a run is on still images without captions."""
    return not config.data.frames and config.text is None and config.data.text_encoder is None


def _reference_run(studied: StudiedRun, request: StudyRequest) -> tuple[StudiedRun | None, int]:
    """The second run with the images, the key and the draws of the studied one, and its newest step.

    Raises:
      RequestError: it is on other images, or has other classes.
    """
    if request.reference is None:
        return None, 0
    config, _, params, step = load_run(request.reference, ema=request.ema)
    flow, own = config.flow, studied.config.flow
    require(
        _is_plain(config) and config.data.autoencoder is None,
        "{reference} must be a run on the pixels of still images without captions",
    )
    size, own_size = (*flow.image_shape, flow.channels), (*own.image_shape, own.channels)
    require(
        size == own_size,
        "{reference} must be a run on images of the size of {workdir}, {0}, got {1}",
        "x".join(map(str, own_size)),
        "x".join(map(str, size)),
    )
    classes, own_classes = (one.num_classes or one.text_dim for one in (flow, own))
    require(
        classes in (0, own_classes),
        "{reference} must be a run without classes or with as many as {workdir}, {0}, got {1}",
        own_classes,
        classes,
    )
    run = dataclasses.replace(studied, params=params, config=config, noise_level=scored_level(config, None))
    return run, step


def _in_memory(config: ExperimentConfig, split: Split, count: int | None, on_skipped: OnSkipped) -> ArraySource:
    """The first images of a split of the run's data as arrays."""
    source = open_scored_source(config, split, count, on_skipped)
    examples = [source[index] for index in range(len(source) if count is None else min(count, len(source)))]
    images = np.stack([example["image"] for example in examples])
    labels = np.asarray([example["label"] for example in examples], np.int32)
    # The label -1 stands for an image without a class.
    return ArraySource(split, images, np.maximum(labels, 0), source.levels, max(source.num_classes, 1))


def _check_classes(config: ExperimentConfig, train: ArraySource, test: ArraySource) -> None:
    """Raises RequestError where a class that is sampled or tested has no training image."""
    if not (config.flow.num_classes or config.flow.text_dim):
        return
    missing = sorted(set(range(test.num_classes)) - set(train.labels.tolist()))
    if missing:
        raise RequestError(
            "{num} must include a training image of every class, got {0} and none of class {1}", len(train), missing[0]
        )


def _outcomes(studied: StudiedRun, request: StudyRequest, reference: Reference | None) -> list[Outcome]:
    train, test = studied.class_log_probs(studied.train, 0), studied.class_log_probs(studied.test, 1)
    outcomes = [likelihood_study.out_of_distribution(studied, train, test, reference)]
    if test.shape[2] > 1:
        filtered = likelihood_study.data_filtering(studied, mislabelled=request.mislabelled, damaged=request.damaged)
        ranked = likelihood_study.ranked_sampling(studied, candidates=request.candidates, keep=request.keep)
        outcomes = [likelihood_study.classification(studied, test), *outcomes, filtered, ranked]
        samples = ranked.shown["drawn"]
    else:
        labels = class_labels(studied.config, 10 * request.candidates)
        samples = sample(studied.params, studied.config, jax.random.fold_in(studied.key, 3), labels, guidance=0.0)
    outcomes.append(likelihood_study.memorisation(studied, train, test, samples, reference))
    ratios = likelihood_ratios(studied, train, test, reference)
    return outcomes if ratios is None else [*outcomes, ratios]
