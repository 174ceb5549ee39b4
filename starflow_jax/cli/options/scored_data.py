"""The data that a run is scored on: pixels of one shape, whose bits/dim compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starflow_jax.cli.errors import CommandError, sentences
from starflow_jax.cli.remarks import skipped_lines

if TYPE_CHECKING:
    from starflow_jax.core.config.experiment import ExperimentConfig
    from starflow_jax.data import Source


def check_on_pixels(config: ExperimentConfig) -> None:
    """Raises CommandError for a run on latents that are encoded inside its step."""
    if config.data.autoencoder is not None:
        _refuse(f"the latents of {config.data.autoencoder}")


def scored_source(config: ExperimentConfig, split: Any, count: int | None = None) -> Source:
    """The first `count` examples (None: all) of the run's own data that can be read; the others are said.

    Raises:
      CommandError: data that are missing, do not fit, are latents, or are of several shapes.
    """
    from starflow_jax.data.decoding.bad_examples import Skipped
    from starflow_jax.data.pipeline.readable_subset import readable
    from starflow_jax.data.sources.mixture import components_of, example_spec
    from starflow_jax.training import open_source
    from starflow_jax.training.step.inputs import check_source

    skipped = Skipped()
    with sentences(open_source, check_source, readable):
        source = open_source(config.data, split, flow=config.flow, text=config.text)
        check_source(source, config.flow, config.text)
        shapes = {example_spec(component.source)["image"][0] for component in components_of(source)}
        if not source.levels or len(shapes) > 1:
            _refuse("latents" if not source.levels else f"{len(shapes)} shapes")
        source = readable(source, skipped, count)
    skipped_lines(skipped)
    return source


def _refuse(seen: str) -> None:
    raise CommandError(f"--workdir must be a run on pixels of one shape, whose bits/dim compare, got {seen}")
