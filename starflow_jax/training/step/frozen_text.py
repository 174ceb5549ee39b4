"""A frozen text encoder: words of a vocabulary, or a pretrained encoder with its parameters.

Like a frozen autoencoder (`frozen_autoencoder`), it is an argument of the compiled step and not part of the training
state, and is sharded by the same rules as the flow.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import numpy as np

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.data import Source
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.models.text import TextEncoder, WordEncoder, caption_prompts, load_text_encoder
from starflow_jax.models.text.protocol import Params
from starflow_jax.models.text.states import Known, states_of
from starflow_jax.models.text.templates import EXTEND, prefixed
from starflow_jax.sharding.layout import Layout, gathered, located


@flax.struct.dataclass
class FrozenText:
    """A frozen text encoder as a pytree whose leaves are its parameters.

    Attributes:
      encoder: static; params: its parameters, empty for words of a vocabulary.
    """

    encoder: TextEncoder = flax.struct.field(pytree_node=False)
    params: Params

    def states(self, ids: jax.Array, layout: Layout | None = None) -> jax.Array:
        """Text states float32 [B, L, D] of token ids int32 [B, L], traceable."""
        return self.encoder.encode(self.params, ids, layout)

    @property
    def empty(self) -> np.ndarray:
        """Token ids int32 [L] of the empty caption."""
        return self.encoder.ids([""])[0]

    def states_of(
        self, ids: np.ndarray, known: Known | None = None, *, layout: Layout | None = None
    ) -> tuple[np.ndarray, dict[bytes, np.ndarray]]:
        """Text states of token ids on the host, each distinct row encoded once; see `models.text.states`."""
        return states_of(lambda rows: np.asarray(_states(layout, self, rows)), ids, known)

    def over(self, layout: Layout | None) -> FrozenText:
        """The same with its parameters sharded over the devices of a layout; None for the first device."""
        if layout is None:
            return dataclasses.replace(self, params=jax.device_put(self.params, jax.local_devices()[0]))

        def put(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
            return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

        return dataclasses.replace(self, params=jax.tree.map(put, self.params, layout.tree(self.params)))

    def abstract(self, layout: Layout | None) -> FrozenText:
        """The same with ShapeDtypeStructs as parameters, for ahead-of-time compilation."""
        return dataclasses.replace(self, params=located(layout, jax.eval_shape(lambda: dict(self.params))))


@functools.partial(jax.jit, static_argnums=0)
def _states(layout: Layout | None, text: FrozenText, ids: jax.Array) -> jax.Array:
    return gathered(layout, text.states(ids, layout))


def load_text(config: ExperimentConfig) -> FrozenText | None:
    """Loads the text encoder of an experiment, its parameters on the host; None if the experiment has none.

    Raises:
      ValueError: see `models.text.load_text_encoder`; or an encoder of another width than `flow.text_dim`.
    """
    if config.text is not None:
        return FrozenText(WordEncoder(config.text.vocabulary, config.flow.text_length), {})
    path = config.data.text_encoder
    if path is None:
        return None
    encoder, params = load_text_encoder(Path(path), config.flow.text_length, config.flow.dtype)
    if encoder.dim != config.flow.text_dim:
        raise ValueError(
            f"flow.text_dim must be the {encoder.dim} channels of the text states of {path}, got {config.flow.text_dim}"
        )
    return FrozenText(encoder, params)


def open_text(config: ExperimentConfig, source: Source) -> FrozenText | None:
    """`load_text` if captions of the source are encoded in the training step; None for words and stored text states.

    Raises:
      ValueError: see `load_text`.
    """
    specs = [example_spec(part.source) for part in components_of(source)]
    if config.text is not None or not any("text" in spec for spec in specs):
        return None
    return load_text(config)


def prompts(
    config: ExperimentConfig,
    captions: Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    aspect: str | None = None,
    fps: float | None = None,
    extended: bool = False,
) -> list[str]:
    """Prompts of captions: with a pretrained encoder, in the templates that the experiment was trained with.

    Empty captions stay empty, like those dropped in training; captions of vocabulary words are returned unchanged.

    Args:
      size: rows and columns of the samples, whose aspect ratio the template names unless `aspect` ("width:height") is
        given.
      fps: frames per second; None for those of the data.
      extended: whether the clip continues an earlier one.
    """
    if config.text is not None or config.data.text_encoder is None:
        return list(captions)
    data = config.data
    parts: Sequence[SourceConfig] = data.mixture or (data,)
    part = max(parts, key=lambda one: one.frames)
    rows, columns = config.flow.image_shape if size is None else size
    common = math.gcd(rows, columns)
    rate = part.fps if fps is None else fps
    templates = part.captions
    options: dict[str, Any] = {
        "fps": (round(rate) if part.frames else 0) if templates.fps else None,
        "noise_std": data.noise_std if templates.noise_level else None,
        "aspect_ratio": (aspect or f"{columns // common}:{rows // common}") if templates.aspect else None,
        "chat_template": templates.chat,
    }
    word = EXTEND if extended else None
    return [caption and caption_prompts([prefixed(caption, word)], **options)[0] for caption in captions]
