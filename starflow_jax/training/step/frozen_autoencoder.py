"""A frozen autoencoder that encodes images and clips inside the training step.

Its parameters are an argument of the compiled step, sharded by the same rules as the flow (`sharding.rules`) and
gathered where they are used. They are not part of the training state: they have no gradients or moments, and
checkpoints do not contain them. `frozen_text` is the counterpart for captions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.choices import Split
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.data import Source
from starflow_jax.models.autoencoders import Autoencoder, load_autoencoder
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.sharding.layout import Layout, gathered, located, placed
from starflow_jax.training.step.inputs import check_source, open_source
from starflow_jax.training.step.pixel_source import check_pixels, pixel_source


@flax.struct.dataclass
class Frozen:
    """A frozen autoencoder as a pytree whose leaves are its parameters.

    Attributes:
      autoencoder: static; params: its parameters, float32.
    """

    autoencoder: Autoencoder = flax.struct.field(pytree_node=False)
    params: Params

    def latents(self, pixels: jax.Array, levels: int, layout: Layout | None = None) -> jax.Array:
        """Encodes integers [B, (T,) H, W, C] in `0 .. levels - 1` to latents float32 [B, (T,) h, w, c]."""
        scaled = placed(layout, jnp.asarray(pixels), "batch").astype(jnp.float32) * (2.0 / (levels - 1)) - 1.0
        return placed(layout, self.autoencoder.encode(gathered(layout, self.params), scaled), "batch")

    def over(self, layout: Layout | None) -> Frozen:
        """The same with its parameters sharded over the devices of a layout; None for the first device."""
        if layout is None:
            return dataclasses.replace(self, params=jax.device_put(self.params, jax.local_devices()[0]))

        def put(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
            return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

        params = jax.tree.map(np.asarray, self.params)
        return dataclasses.replace(self, params=jax.tree.map(put, params, layout.tree(params)))

    def abstract(self, layout: Layout | None) -> Frozen:
        """The same with ShapeDtypeStructs as parameters, for ahead-of-time compilation."""
        return dataclasses.replace(self, params=located(layout, jax.eval_shape(lambda: dict(self.params))))


def load_encoder(config: ExperimentConfig) -> Frozen | None:
    """Loads the autoencoder that `config.data` names; None if it names none.

    Raises:
      ValueError: the file does not exist, holds no autoencoder, or one whose latents do not fit the flow.
    """
    if config.data.autoencoder is None:
        return None
    autoencoder, params = load_autoencoder(Path(config.data.autoencoder), config.data.autoencoder_dtype)
    if autoencoder.channels != config.flow.channels:
        raise ValueError(
            f"flow.channels must be the {autoencoder.channels} channels of the latents of data.autoencoder "
            f"{config.data.autoencoder}, got {config.flow.channels}"
        )
    return Frozen(autoencoder, params)


def open_with_encoder(
    config: ExperimentConfig, split: Split, source: Source | None = None
) -> tuple[Source, Frozen | None]:
    """Opens the data of an experiment, and the autoencoder that encodes them if there is one.

    Args:
      source: data to use instead of those that `config.data` names.

    Returns:
      The data, and the autoencoder with its parameters on the host, or None.

    Raises:
      ValueError: see `load_encoder`, `open_source`; data that do not fit the flow, or that cannot be encoded.
    """
    encoder = load_encoder(config)
    if encoder is None:
        source = open_source(config.data, split, flow=config.flow, text=config.text) if source is None else source
        check_source(source, config.flow, config.text)
        return source, None
    autoencoder = encoder.autoencoder
    strides = (autoencoder.stride, autoencoder.pixel_channels, autoencoder.frame_stride)
    if source is None:
        source = pixel_source(config, split, *strides)
    else:
        check_pixels(source, *strides)
    check_source(source, config.flow, config.text, autoencoder)
    return source, encoder
