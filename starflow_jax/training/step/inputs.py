"""From a batch of the loader to what the flow reads: noisy pixels in [-1, 1] and a condition."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.data import DataConfig
from starflow_jax.core.config.experiment import ExperimentConfig, TextConfig
from starflow_jax.core.config.flow import FlowConfig
from starflow_jax.data import MovingDigits, Source
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.data.sources.clips import ClipSource
from starflow_jax.data.sources.latents import LatentSource
from starflow_jax.data.sources.mixture import Mixture, components_of, example_spec
from starflow_jax.data.sources.opening import open_source
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
    "word_encoder",
]


def check_source(
    source: Source, flow: FlowConfig, text: TextConfig | None = None, autoencoder: Autoencoder | None = None
) -> None:
    """Raises ValueError unless the images and classes, or captions, of `source` fit `flow` and `text`.

    With an autoencoder their latents must fit. Of several shapes those that are not the flow's own must suit its
    patches, and its positions must be rotary.
    """
    parts = [component.source for component in components_of(source)]
    specs = [example_spec(part) for part in parts]
    shapes = [latent_shape(autoencoder, spec["image"][0])[-3:] for spec in specs]
    several = len({shape[:2] for shape in shapes}) > 1
    seen = "images" if autoencoder is None else "latents"
    expected = (*flow.image_shape, flow.channels)
    for part, spec, shape in zip(parts, specs, shapes, strict=True):
        if several and shape != expected:
            suits = flow.rope and shape[2] == flow.channels and not any(side % flow.patch_size for side in shape[:2])
            if not suits:
                raise ValueError(
                    f"flow.rope, flow.channels and flow.patch_size must fit the {seen} of {part.name}, {list(shape)}, "
                    f"got rope={flow.rope}, channels={flow.channels} and patch_size={flow.patch_size}"
                )
        elif shape != expected:
            raise ValueError(
                f"flow.image_size and flow.channels must fit the {seen} of {part.name}, {list(shape)}, "
                f"got {list(expected)}"
            )
        _check_condition(part, spec, flow, text)


def _check_condition(source: Source, spec: Mapping[str, Any], flow: FlowConfig, text: TextConfig | None) -> None:
    """The part of `check_source` about what the flow is conditioned on."""
    if isinstance(source, MovingDigits):
        # Its word ids mean nothing in another vocabulary, or in the same words in another order.
        words = None if text is None else text.vocabulary
        if words != source.encoder.vocabulary:
            known, seen = (" ".join(some) for some in (source.encoder.vocabulary, words or ("none",)))
            raise ValueError(f"text.vocabulary must be that of {source.name}, {known!r}, got {seen!r}")
        return
    if "text_states" in spec:
        dim = spec["text_states"][0][1]
        if flow.text_dim != dim:
            raise ValueError(f"flow.text_dim must be {dim}, as the text states of {source.name}, got {flow.text_dim}")
        return
    if text is not None:
        if "text" not in spec:
            raise ValueError(f"text must be None for {source.name}, which has no captions, got a vocabulary")
        return
    if "text" in spec:  # read by data.text_encoder
        return
    room = flow.num_classes or flow.text_dim
    if 0 < room < source.num_classes:
        name = "flow.num_classes" if flow.num_classes else "flow.text_dim"
        raise ValueError(f"{name} must be at least the {source.num_classes} classes of {source.name}, got {room}")


def shortened(source: Source, frames: int | None) -> Source:
    """What a stage on clips of `frames` frames reads: a source of such clips where it can be made, else as it is."""
    if frames is None:
        return source
    if isinstance(source, Mixture):
        parts = tuple(dataclasses.replace(one, source=shortened(one.source, frames)) for one in source.components)
        return dataclasses.replace(source, components=parts)
    if isinstance(source, ClipSource) or (isinstance(source, LatentSource) and source.frames is not None):
        return dataclasses.replace(source, frames=min(frames, source.frames or frames))
    if not isinstance(source, MovingDigits):
        return source
    # Two at least, as a "(v2v)" clip has a source and a target; `first_frames` makes stills of them.
    return dataclasses.replace(source, frames=max(2, frames), straight_frames=source.straight)


def first_frames(batch: Mapping[str, np.ndarray], frames: int | None) -> dict[str, np.ndarray]:
    """A batch of clips cut to their first frames; as it is where `frames` is None, or of still images."""
    if frames is None or batch["image"].ndim != 5:
        return dict(batch)
    return {**batch, "image": batch["image"][:, :frames]}


def noisy_pixels(key: jax.Array, image: jax.Array, levels: int, config: DataConfig) -> jax.Array:
    """Integer pixels, or latents, to what the flow is trained on.

    "uniform" gives `2 (v + u) / levels - 1`; "gaussian" gives `2 v / (levels - 1) - 1 + noise_std eps`, and of latents
    `v + noise_std eps`.

    Args:
      key: of the noise.
      image: integers of any shape, values in `0 .. levels - 1`; with levels of 0 continuous values.

    Returns:
      float32 array of that shape.
    """
    if config.noise == "uniform":
        return dequantise(image, jax.random.uniform(key, image.shape), levels)
    pixels = image.astype(jnp.float32)
    if levels:
        pixels = pixels * (2.0 / (levels - 1)) - 1.0
    return pixels + config.noise_std * jax.random.normal(key, image.shape)


def drop_labels(key: jax.Array, label: jax.Array, rate: float) -> jax.Array:
    """Labels int32 [B], each replaced by -1 with probability `rate`."""
    return jnp.where(jax.random.uniform(key, label.shape) < rate, -1, label) if rate > 0 else label


def word_encoder(config: ExperimentConfig) -> WordEncoder:
    """What turns captions into the text states of this experiment.

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
    """What the flow is conditioned on for a training batch, some conditions dropped (`data.label_drop`).

    Args:
      key: decides which; batch: `label` int32 [B]; with captions `text` int32 [B, L], or `text_states` [B, L, D] that
        were computed before.
      text: what reads captions, None for the words of the experiment; layout: over which its parameters lie.

    Returns:
      See `condition`; text states [B, L, D] of captions, those of the empty one for a dropped one. States that were
      computed before are taken as they are: their source drops captions, as it knows the states of the empty one.
    """
    if "text_states" in batch:
        return jnp.asarray(batch["text_states"], jnp.float32)
    if config.text is not None:
        text = FrozenText(word_encoder(config), {})
    if text is None or "text" not in batch:
        return condition(drop_labels(key, batch["label"], config.data.label_drop), config.flow)
    ids = jnp.asarray(batch["text"])
    kept = jax.random.uniform(key, ids.shape[:1]) >= config.data.label_drop
    return text.states(jnp.where(kept[:, None], ids, text.empty), layout)


def condition(label: jax.Array, flow: FlowConfig) -> jax.Array | None:
    """What the flow is conditioned on, from labels int32 [B] (-1: none).

    Returns:
      The labels where the flow has classes; one text token [B, 1, text_dim], the one-hot label (zeros for
      -1), where it reads text; None where it reads neither.
    """
    if flow.num_classes:
        return label
    if flow.text_dim:
        return jax.nn.one_hot(label, flow.text_dim)[:, None]
    return None
