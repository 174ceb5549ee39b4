"""Inputs of the flow from a batch of the loader: noisy pixels in [-1, 1] and a condition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.experiment_config import ExperimentConfig, TextConfig
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.source_config import CaptionConfig
from starflow_jax.data import Source
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.data.pipeline.opening_notes import class_names
from starflow_jax.data.sources.mixture import Mixture, components_of, example_spec
from starflow_jax.data.sources.source_opening import open_source
from starflow_jax.models.autoencoders import Autoencoder, latent_shape
from starflow_jax.models.text.words import WordEncoder
from starflow_jax.sharding.layout import Layout
from starflow_jax.training.step.frozen_text import FrozenText

__all__ = [
    "batch_condition",
    "check_source",
    "condition",
    "drop_labels",
    "first_frames",
    "latent_shape",
    "noisy_pixels",
    "open_source",
    "shortened",
    "with_levels",
    "word_encoder",
]


def check_source(
    source: Source, flow: FlowConfig, text: TextConfig | None = None, autoencoder: Autoencoder | None = None
) -> None:
    """Raises ValueError unless the images and classes, or captions, of `source` fit `flow` and `text`.

    With an autoencoder, the latents of the images must fit. A source with several shapes needs a flow with rotary
    positions, and sides that are multiples of its patch size.
    """
    parts = [component.source for component in components_of(source)]
    levels = None if flow.pixel_map is None or flow.pixel_map.kind == "affine" else flow.pixel_map.levels
    if levels is not None and levels != source.levels:
        raise ValueError(f"flow.pixel_map.levels must be the {source.levels} levels of {source.name}, got {levels}")
    specs = [example_spec(part) for part in parts]
    shapes = [latent_shape(autoencoder, spec["image"][0])[-3:] for spec in specs]
    several = len({shape[:2] for shape in shapes}) > 1
    kind = "images" if autoencoder is None else "latents"
    expected = (*flow.image_shape, flow.channels)
    for part, spec, shape in zip(parts, specs, shapes, strict=True):
        if several and shape != expected:
            suits = flow.rope and shape[2] == flow.channels and not any(side % flow.patch_size for side in shape[:2])
            if not suits:
                raise ValueError(
                    f"flow.rope, flow.channels and flow.patch_size must fit the {kind} of {part.name}, {list(shape)}, "
                    f"got rope={flow.rope}, channels={flow.channels} and patch_size={flow.patch_size}"
                )
        elif shape != expected:
            raise ValueError(
                f"flow.image_size and flow.channels must fit the {kind} of {part.name}, {list(shape)}, "
                f"got {list(expected)}"
            )
        _check_condition(part, spec, flow, text)


def _check_condition(source: Source, spec: Mapping[str, Any], flow: FlowConfig, text: TextConfig | None) -> None:
    """The part of `check_source` about the condition of the flow."""
    vocabulary: tuple[str, ...] | None = getattr(source, "vocabulary", None)
    if vocabulary is not None:
        # Word ids have no meaning in another vocabulary, or in the same words in another order.
        words = None if text is None else text.vocabulary
        if words != vocabulary:
            expected, actual = (" ".join(some) for some in (vocabulary, words or ("none",)))
            raise ValueError(f"text.vocabulary must be that of {source.name}, {expected!r}, got {actual!r}")
        return
    if "text_states" in spec:
        dim = spec["text_states"][0][1]
        if flow.text_dim != dim:
            raise ValueError(
                f"flow.text_dim must be {dim}, the size of the text states of {source.name}, got {flow.text_dim}"
            )
        return
    if text is not None:
        if "text" not in spec:
            raise ValueError(f"text must be None for {source.name}, which has no captions, got a vocabulary")
        return
    if "text" in spec:  # read by data.text_encoder
        return
    num_classes = flow.num_classes or flow.text_dim
    if 0 < num_classes < source.num_classes:
        name = "flow.num_classes" if flow.num_classes else "flow.text_dim"
        raise ValueError(
            f"{name} must be at least the {source.num_classes} classes of {source.name}, got {num_classes}"
        )


def with_levels(config: ExperimentConfig, source: Source) -> ExperimentConfig:
    """The configuration with what `source` states recorded: `data.levels`, `data.class_names`, `captions.lines`.

    Raises:
      ValueError: the configuration states another number.
    """
    data, levels = config.data, source.levels
    if data.levels not in (None, levels):
        raise ValueError(f"data.levels must be None or the {levels} levels of {source.name}, got {data.levels}")
    mixture = tuple(
        dataclasses.replace(part, levels=levels, captions=_with_lines(part.captions)) for part in data.mixture
    )
    data = dataclasses.replace(
        data,
        levels=levels,
        class_names=class_names(source) or data.class_names,
        captions=_with_lines(data.captions),
        mixture=mixture,
    )
    return dataclasses.replace(config, data=data)


def _with_lines(captions: CaptionConfig) -> CaptionConfig:
    return dataclasses.replace(captions, lines=captions.lines or "one")


def shortened(source: Source, frames: int | None) -> Source:
    """The source cut to clips of `frames` frames for a curriculum stage; sources of still images are unchanged."""
    if frames is None:
        return source
    if isinstance(source, Mixture):
        parts = tuple(dataclasses.replace(one, source=shortened(one.source, frames)) for one in source.components)
        return dataclasses.replace(source, components=parts)
    shorten: Callable[[int], Source] | None = getattr(source, "with_frames", None)
    return source if shorten is None else shorten(frames)


def first_frames(batch: Mapping[str, np.ndarray], frames: int | None) -> dict[str, np.ndarray]:
    """A batch of clips cut to their first `frames` frames; unchanged for None and for still images."""
    if frames is None or batch["image"].ndim != 5:
        return dict(batch)
    return {**batch, "image": batch["image"][:, :frames]}


def noisy_pixels(
    key: jax.Array, image: jax.Array, levels: int, config: DataConfig, noise_std: jax.Array | None = None
) -> jax.Array:
    """Adds the training noise to integer pixels or to latents.

    "none" gives the vectors as they are; "uniform" gives `2 (v + u) / levels - 1`; "gaussian" gives
    `2 v / (levels - 1) - 1 + noise_std eps`, and of latents and vectors `v + noise_std eps`.

    Args:
      key: of the noise.
      image: integers of any shape in `0 .. levels - 1`; continuous values if `levels` is 0.
      noise_std: [B], of every image of a batch; None for that of the configuration.

    Returns:
      float32 array of that shape.
    """
    if config.noise == "uniform":
        return dequantise(image, jax.random.uniform(key, image.shape), levels)
    pixels = image.astype(jnp.float32)
    if config.noise == "none":
        return pixels
    if levels:
        pixels = pixels * (2.0 / (levels - 1)) - 1.0
    scale = config.noise_std if noise_std is None else noise_std.reshape(-1, *(1,) * (image.ndim - 1))
    return pixels + scale * jax.random.normal(key, image.shape)


def drop_labels(key: jax.Array, label: jax.Array, rate: float) -> jax.Array:
    """Labels int32 [B], each replaced by -1 with probability `rate`."""
    return jnp.where(jax.random.uniform(key, label.shape) < rate, -1, label) if rate > 0 else label


def word_encoder(config: ExperimentConfig) -> WordEncoder:
    """The encoder of captions made of words of the experiment's vocabulary.

    Raises:
      ValueError: an experiment without a vocabulary.
    """
    if config.text is None:
        raise ValueError("captions need an experiment with text.vocabulary, got text=None")
    return WordEncoder(config.text.vocabulary, config.flow.text_length)


def batch_condition(
    key: jax.Array,
    batch: Mapping[str, Any],
    config: ExperimentConfig,
    text: FrozenText | None = None,
    layout: Layout | None = None,
) -> jax.Array | None:
    """The condition of a training batch, with conditions dropped at random (`data.label_drop`).

    Args:
      key: of the dropping; batch: `label` int32 [B]; with captions `text` int32 [B, L], or precomputed `text_states`
        [B, L, D].
      text: text encoder, None for words of the vocabulary; layout: that its parameters are sharded over.

    Returns:
      See `condition`; for captions text states [B, L, D], where a dropped caption has those of the empty caption.
      Precomputed states are returned unchanged: their source drops captions itself.
    """
    if "text_states" in batch:
        return jnp.asarray(batch["text_states"], jnp.float32)
    if config.text is not None:
        text = FrozenText(word_encoder(config), {})
    if text is None or "text" not in batch:
        return condition(drop_labels(key, batch["label"], config.data.label_drop), config.flow)
    ids = jnp.asarray(batch["text"])
    keep = jax.random.uniform(key, ids.shape[:1]) >= config.data.label_drop
    return text.states(jnp.where(keep[:, None], ids, text.empty), layout)


def condition(label: jax.Array, flow: FlowConfig) -> jax.Array | None:
    """The condition of the flow from labels int32 [B], -1 for no label.

    Returns:
      The labels if the flow has classes; one text token [B, 1, text_dim], the one-hot label (zeros for -1), if it is
      conditioned on text; None if it is unconditional.
    """
    if flow.num_classes:
        return label
    if flow.text_dim:
        return jax.nn.one_hot(label, flow.text_dim)[:, None]
    return None
