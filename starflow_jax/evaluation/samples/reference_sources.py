"""The real images that generated ones are compared with."""

from __future__ import annotations

from starflow_jax.core.choices import Split
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import RequestError
from starflow_jax.data import Source
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.data.pipeline.readable_subset import readable
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.data.sources.reference_images import open_real
from starflow_jax.evaluation.likelihood.scored_source import OnSkipped
from starflow_jax.evaluation.samples.sample_quality_request import SampleQualityRequest
from starflow_jax.sampling.latent_shapes import RunAutoencoder
from starflow_jax.training.step.frozen_autoencoder import open_with_encoder


def open_references(
    request: SampleQualityRequest,
    config: ExperimentConfig,
    on_skipped: OnSkipped,
    autoencoder: RunAutoencoder | None = None,
) -> tuple[Source, Source | None]:
    """The real images to compare with, and other real images, whose metrics are the baseline; None where none exist.

    Args:
      autoencoder: decodes the samples of a run on latents; on_skipped: called with the examples that cannot be read.

    Raises:
      RequestError: images of several shapes. ValueError: images that are missing or cannot be read.
    """
    if request.real is not None:
        return _open_files(request, config, on_skipped, autoencoder), None
    split: Split = request.reference or "train"
    reference = _open_split(config, split, on_skipped)
    try:
        return reference, _open_split(config, "test" if split == "train" else "train", on_skipped)
    except (ValueError, OSError):  # the other split is optional
        return reference, None


def _open_files(
    request: SampleQualityRequest, config: ExperimentConfig, on_skipped: OnSkipped, decoder: RunAutoencoder | None
) -> Source:
    """The readable images of `request.real`, of the size that the run generates."""
    assert request.real is not None
    skipped = Skipped()
    height, width = config.flow.image_shape
    size, channels = (height, width), config.flow.channels
    if decoder is not None:
        size, channels = (height * decoder.stride, width * decoder.stride), decoder.pixel_channels
    source = readable(open_real(request.real, size, channels, config.data.background), skipped)
    on_skipped(skipped)
    return source


def _open_split(config: ExperimentConfig, split: Split, on_skipped: OnSkipped) -> Source:
    """The readable images of a split, in pixels."""
    skipped = Skipped()
    source, _ = open_with_encoder(config, split)
    shapes = {example_spec(component.source)["image"][0] for component in components_of(source)}
    if not source.levels or len(shapes) > 1:
        raise RequestError("{workdir} must be a run on images of one shape, got {0} shapes", len(shapes))
    source = readable(source, skipped)
    on_skipped(skipped)
    return source
