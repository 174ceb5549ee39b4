"""The interface of text encoders. Parameters are separate, so that an encoder is static under `jit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from starflow_jax.sharding.layout import Layout

Params = Mapping[str, Any]  # nested; arrays of NumPy or JAX


@runtime_checkable
class CaptionReader(Protocol):
    """Converts captions to token ids: the part of a text encoder that data sources need."""

    @property
    def length(self) -> int:
        """L, the length to which captions are padded or truncated."""
        ...

    def ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Token ids int32 [B, L] of captions.

        Raises:
          ValueError: a caption cannot be encoded.
        """
        ...

    def known_ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Token ids int32 [B, L] of any captions; words that cannot be encoded are left out."""
        ...


@runtime_checkable
class TextEncoder(CaptionReader, Protocol):
    """A hashable value whose `encode` is a pure function of the parameters and the ids."""

    @property
    def dim(self) -> int:
        """D, the width of the text states."""
        ...

    def encode(
        self, params: Params, ids: Int[jax.Array | np.ndarray, "B L"], layout: Layout | None = None
    ) -> Float[Array, "B L D"]:
        """Text states float32 [B, L, D] of token ids int32 [B, L], zeros at padding.

        Args:
          params: the parameters; ids: the token ids; layout: of the parameters over devices, None for one device.
        """
        ...


@runtime_checkable
class TextEncoderFormat(Protocol):
    """Reads pretrained folders of one `model_type`; a class of the registry `TEXT_ENCODERS`."""

    @staticmethod
    def read_caption_reader(folder: Path, config: Mapping[str, Any], length: int) -> CaptionReader:
        """The tokenizer alone, for data sources.

        Args:
          folder: the pretrained folder; config: contents of its `config.json`; length: L.

        Raises:
          ValueError: files are missing or damaged, or the configuration is invalid.
        """
        ...

    @staticmethod
    def read_encoder(folder: Path, config: Mapping[str, Any], length: int, dtype: str) -> tuple[TextEncoder, Params]:
        """The encoder and its parameters, computed in `dtype`, "float32" or "bfloat16"; raises as above."""
        ...
