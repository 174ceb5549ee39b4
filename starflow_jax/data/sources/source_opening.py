"""Opens the source that a configuration names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from starflow_jax.core.choices import Split
from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import TextConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.core.storage.addresses import is_address
from starflow_jax.core.storage.copies import local_path
from starflow_jax.data.sources.base import Source
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.models.text import CaptionReader, WordEncoder, load_caption_reader

__all__ = ["Split", "open_source"]

S = TypeVar("S", bound=SourceConfig)


def open_source(
    config: SourceConfig, split: Split, *, flow: FlowConfig | None = None, text: TextConfig | None = None
) -> Source:
    """Opens one split of the source that `config.source` names in the registry `SOURCES`.

    Moving digits take the sizes of the canvas and of captions from `flow`; digits are enlarged to a `flow.image_size`
    that is a multiple of their 8 pixels; images and videos are resized to `flow.image_size` or to the buckets.

    Args:
      config: one source, or the data of an experiment.
      flow: the flow that reads the examples.
      text: its vocabulary. Without it, and without `text_encoder`, captions are not read.

    Raises:
      ValueError: the source is not registered, or its files are missing, unreadable or of another kind, or it needs a
        flow, or pixels have other levels than `config.levels`.
    """
    config = _with_local_paths(config)
    noise_std, label_drop = (config.noise_std, config.label_drop) if isinstance(config, DataConfig) else (0.0, 0.0)
    request = SourceRequest(
        split,
        flow,
        text,
        noise_std,
        label_drop if split == "train" else 0.0,
        _caption_reader(config, flow, text),
    )
    source: Source = SOURCES.get(config.source)(config, request)
    if config.levels not in (None, source.levels):
        raise ValueError(
            f"data.levels must be None or the {source.levels} levels of {source.name}, got {config.levels}: bits/dim "
            "and samples of other levels do not compare"
        )
    return source


def _with_local_paths(config: S) -> S:
    """The configuration with local copies in place of addresses, but of sources that read addresses themselves."""
    if isinstance(config, DataConfig) and config.mixture:
        mixture = tuple(map(_with_local_paths, config.mixture))
        return config if mixture == config.mixture else dataclasses.replace(config, mixture=mixture)
    if config.path is None or not is_address(config.path) or config.traits.addresses:
        return config
    return dataclasses.replace(config, path=str(local_path(config.path)))


def _caption_reader(config: SourceConfig, flow: FlowConfig | None, text: TextConfig | None) -> CaptionReader | None:
    """The vocabulary, or the tokenizer of `data.text_encoder`."""
    if flow is None:
        return None
    if text is not None:
        return WordEncoder(text.vocabulary, flow.text_length)
    if not isinstance(config, DataConfig) or config.text_encoder is None:
        return None
    if all(part.traits.latents for part in config.parts):
        return None  # their text states were computed by `starflow encode`
    return load_caption_reader(Path(config.text_encoder), flow.text_length)
