"""Data of pixels for a frozen autoencoder: opened at the resolution whose latents the flow reads, and checked."""

from __future__ import annotations

import dataclasses

from starflow_jax.core.choices import Split
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.data import Source
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.data.sources.source_opening import open_source


def pixel_source(
    config: ExperimentConfig, split: Split, stride: int, pixel_channels: int, frame_stride: int = 1
) -> Source:
    """Opens images or clips of `stride` times the rows and columns of `config.flow`, whose latents fit the flow.

    Raises:
      ValueError: see `open_source`; data that are latents already, or images whose fixed size does not fit.
    """
    check(not config.data.has_latents, "data.source must be images or videos to be encoded, got 'latents'")
    height, width = config.flow.image_shape
    pixels = dataclasses.replace(config.flow, image_size=(height * stride, width * stride), channels=pixel_channels)
    multiple = stride * config.flow.patch_size
    parts = tuple(dataclasses.replace(part, multiple=part.multiple or multiple) for part in config.data.mixture)
    data = dataclasses.replace(config.data, mixture=parts, multiple=config.data.multiple or multiple)
    source = open_source(data, split, flow=pixels, text=config.text)
    check_pixels(source, stride, pixel_channels, frame_stride)
    return source


def check_pixels(source: Source, stride: int, pixel_channels: int, frame_stride: int = 1) -> None:
    """Raises ValueError unless an autoencoder of those strides and channels can encode all of `source`."""
    check(source.levels > 0, f"{source.name} must contain pixels to be encoded, got latents")
    for component in components_of(source):
        shape = example_spec(component.source)["image"][0]
        check(
            shape[-1] == pixel_channels and not any(side % stride for side in shape[-3:-1]),
            f"images of {component.source.name} must have {pixel_channels} channels and sides that are multiples of "
            f"{stride} for this autoencoder, got {list(shape)}",
        )
        check(
            len(shape) == 3 or (shape[0] - 1) % frame_stride == 0,
            f"clips of {component.source.name} must have 1 plus a multiple of {frame_stride} frames for this "
            f"autoencoder, got {shape[0]}",
        )
