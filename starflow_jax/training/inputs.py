"""From a batch of the loader to what the flow reads: noisy pixels in [-1, 1] and a condition."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.config.experiment import DataConfig
from starflow_jax.config.flow import FlowConfig
from starflow_jax.data import ArraySource, Source, dequantise, digits


def open_source(config: DataConfig, split: Literal["train", "test"]) -> Source:
    """The images of one split.

    Raises:
      ValueError: a file that is missing, unreadable, or holds other arrays than `image` and `label`.
    """
    if config.source == "digits":
        return digits(split)
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


def check_source(source: Source, flow: FlowConfig) -> None:
    """Raises ValueError unless the images and classes of `source` fit `flow`."""
    shape = tuple(source[0]["image"].shape)
    expected = (*flow.image_shape, flow.channels)
    if shape != expected:
        raise ValueError(
            f"flow.image_size and flow.channels must fit the images of {source.name}, {list(shape)}, "
            f"got {list(expected)}"
        )
    room = flow.num_classes or flow.text_dim
    if 0 < room < source.num_classes:
        name = "flow.num_classes" if flow.num_classes else "flow.text_dim"
        raise ValueError(f"{name} must be at least the {source.num_classes} classes of {source.name}, got {room}")


def noisy_pixels(key: jax.Array, image: jax.Array, levels: int, config: DataConfig) -> jax.Array:
    """Integer pixels to what the flow is trained on.

    "uniform" gives `2 (v + u) / levels - 1`; "gaussian" gives `2 v / (levels - 1) - 1 + noise_std eps`.

    Args:
      key: of the noise.
      image: integers of any shape, values in `0 .. levels - 1`.

    Returns:
      float32 array of that shape.
    """
    if config.noise == "uniform":
        return dequantise(image, jax.random.uniform(key, image.shape), levels)
    pixels = image.astype(jnp.float32) * (2.0 / (levels - 1)) - 1.0
    return pixels + config.noise_std * jax.random.normal(key, image.shape)


def drop_labels(key: jax.Array, label: jax.Array, rate: float) -> jax.Array:
    """Labels int32 [B], each replaced by -1 with probability `rate`."""
    return jnp.where(jax.random.uniform(key, label.shape) < rate, -1, label) if rate > 0 else label


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
