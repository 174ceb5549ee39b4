"""From a batch of the loader to what the flow reads: noisy pixels in [-1, 1] and a condition."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.config.data import DataConfig
from starflow_jax.config.experiment import ExperimentConfig, TextConfig
from starflow_jax.config.flow import FlowConfig
from starflow_jax.data import ArraySource, MovingDigits, Source, dequantise, digits
from starflow_jax.text.words import WordEncoder


def open_source(config: DataConfig, split: Literal["train", "test"], *, flow: FlowConfig | None = None) -> Source:
    """The images or clips of one split.

    Moving digits take the size of the canvas and of captions from `flow`; digits are enlarged to a `flow.image_size`
    that is a multiple of their 8 pixels.

    Raises:
      ValueError: a file that is missing, unreadable, or holds other arrays than `image` and `label`.
    """
    if config.source == "digits":
        shape = (8, 8) if flow is None else flow.image_shape
        fits = shape[0] == shape[1] and shape[0] % 8 == 0
        return digits(split, enlarge=shape[0] // 8 if fits else 1)  # `check_source` refuses what does not fit
    if config.source == "moving_digits":
        if flow is None or flow.image_shape[0] != flow.image_shape[1]:
            raise ValueError("data.source 'moving_digits' needs a flow of a square flow.image_size")
        return MovingDigits(
            split,
            frames=config.frames,
            canvas=flow.image_shape[0],
            digits=config.digits,
            speed=config.speed,
            clips=config.clips if split == "train" else config.test_clips,
            words=flow.text_length,
            # Held-out clips are plain ones, so that what is scored does not depend on the mixture.
            extend=config.extend if split == "train" else 0.0,
            inverted=config.inverted if split == "train" else 0.0,
        )
    assert config.path is not None  # DataConfig checks it
    path = Path(config.path) / f"{split}.npz"
    if not path.is_file():
        raise ValueError(f"data file {path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["image"], arrays["label"].astype(np.int32)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"data file {path} cannot be read: {str(error).splitlines()[0]}") from error
    num_classes = int(labels.max(initial=0)) + 1
    return ArraySource(path.stem, images, labels, levels=256, num_classes=num_classes)


def check_source(source: Source, flow: FlowConfig, text: TextConfig | None = None) -> None:
    """Raises ValueError unless the images and classes, or captions, of `source` fit `flow` and `text`."""
    shape = tuple(source[0]["image"].shape)
    expected = (*flow.image_shape, flow.channels)
    if shape[-3:] != expected:
        raise ValueError(
            f"flow.image_size and flow.channels must fit the images of {source.name}, {list(shape[-3:])}, "
            f"got {list(expected)}"
        )
    if isinstance(source, MovingDigits):
        # Its word ids mean nothing in another vocabulary, or in the same words in another order.
        words = None if text is None else text.vocabulary
        if words != source.encoder.vocabulary:
            known, seen = (" ".join(some) for some in (source.encoder.vocabulary, words or ("none",)))
            raise ValueError(f"text.vocabulary must be that of {source.name}, {known!r}, got {seen!r}")
        return
    room = flow.num_classes or flow.text_dim
    if 0 < room < source.num_classes:
        name = "flow.num_classes" if flow.num_classes else "flow.text_dim"
        raise ValueError(f"{name} must be at least the {source.num_classes} classes of {source.name}, got {room}")


def shortened(source: Source, frames: int | None) -> Source:
    """What a stage on clips of `frames` frames reads: a source of such clips where it can be made, else as it is."""
    if frames is None or not isinstance(source, MovingDigits):
        return source
    # Two at least, as a "(v2v)" clip has a source and a target; `first_frames` makes stills of them.
    return dataclasses.replace(source, frames=max(2, frames), straight_frames=source.straight)


def first_frames(batch: Mapping[str, np.ndarray], frames: int | None) -> dict[str, np.ndarray]:
    """A batch of clips cut to their first frames; as it is where `frames` is None."""
    return {**batch, "image": batch["image"][:, :frames]} if frames is not None else dict(batch)


def noisy_pixels(key: jax.Array, image: jax.Array, levels: int, config: DataConfig) -> jax.Array:
    """Integer pixels to what the flow is trained on.

    "uniform" gives `2 (v + u) / levels - 1`; "gaussian" gives `2 v / (levels - 1) - 1 + noise_std eps`.

    Args:
      key: of the noise.
      image: integers of any shape, values in `0 .. levels - 1`.

    Returns:
      float32 array of that shape.
    """
    if jnp.issubdtype(image.dtype, jnp.floating):
        return image.astype(jnp.float32) + config.noise_std * jax.random.normal(key, image.shape)
    if config.noise == "uniform":
        return dequantise(image, jax.random.uniform(key, image.shape), levels)
    pixels = image.astype(jnp.float32) * (2.0 / (levels - 1)) - 1.0
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


def batch_condition(key: jax.Array, batch: Mapping[str, Any], config: ExperimentConfig) -> jax.Array | None:
    """What the flow is conditioned on for a training batch, some conditions dropped (`data.label_drop`).

    Args:
      key: decides which; batch: `label` int32 [B], and `text` int32 [B, L] where the experiment has captions.

    Returns:
      See `condition`; text states [B, L, V] of captions, zeros for a dropped one.
    """
    if "text" in batch and jnp.issubdtype(batch["text"].dtype, jnp.floating):
        states = jnp.asarray(batch["text"])
        kept = jax.random.uniform(key, states.shape[:1]) >= config.data.label_drop
        return jnp.where(kept[:, None, None], states, 0)
    if config.text is None:
        return condition(drop_labels(key, batch["label"], config.data.label_drop), config.flow)
    ids = jnp.asarray(batch["text"])
    kept = jax.random.uniform(key, ids.shape[:1]) >= config.data.label_drop
    return word_encoder(config).states(jnp.where(kept[:, None], ids, 0))


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
