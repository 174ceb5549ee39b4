"""The data that a run is scored on: pixels of one shape, so that bits/dim are comparable."""

from __future__ import annotations

from collections.abc import Callable

from starflow_jax.core.choices import Split
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import RequestError, require
from starflow_jax.data import Source
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.data.pipeline.caption_account import caption_account
from starflow_jax.data.pipeline.readable_subset import readable
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.training import open_source
from starflow_jax.training.step.inputs import check_source

OnSkipped = Callable[[Skipped], None]


def ignore_skipped(skipped: Skipped) -> None:
    """The default `on_skipped`: does not report examples that could not be read."""


def check_on_pixels(config: ExperimentConfig) -> None:
    """Raises RequestError for a run on latents that are encoded inside its training step."""
    if config.data.autoencoder is not None:
        _refuse(f"the latents of {config.data.autoencoder}")


def open_scored_source(
    config: ExperimentConfig, split: Split, count: int | None = None, on_skipped: OnSkipped = ignore_skipped
) -> Source:
    """The first `count` readable examples (None for all) of the run's own data.

    Args:
      on_skipped: called with the examples that could not be read.

    Raises:
      RequestError: latents, or data of several shapes.
      ValueError: data that are missing, do not fit the flow, or have no captions for a flow that reads text.
    """
    skipped = Skipped()
    source = open_source(config.data, split, flow=config.flow, text=config.text)
    check_source(source, config.flow, config.text)
    if (account := caption_account(source)) is not None:
        account.check_any()
    shapes = {example_spec(component.source)["image"][0] for component in components_of(source)}
    if not source.levels or len(shapes) > 1:
        _refuse("latents" if not source.levels else f"{len(shapes)} shapes")
    source = readable(source, skipped, count)
    on_skipped(skipped)
    return source


def scored_level(config: ExperimentConfig, requested: float | None) -> float | None:
    """The noise level that dequantised images are scored at: the requested one, or the lowest of the flow.

    Returns None for a flow without noise levels.

    Raises:
      RequestError: a level outside of those of the flow, or one for a flow without.
    """
    levels = config.flow.noise_levels
    if requested is None:
        return config.flow.lowest_level
    if levels is None:
        raise RequestError("{noise_level} requires a run with flow.noise_levels, got {0:g} for one without", requested)
    low, high = levels
    require(low <= requested <= high, "{noise_level} must be from {0:g} to {1:g}, got {2:g}", low, high, requested)
    return requested


def _refuse(kind: str) -> None:
    raise RequestError("{workdir} must be a run on pixels of one shape, whose bits/dim compare, got {0}", kind)
