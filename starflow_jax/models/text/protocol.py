"""What a text encoder offers. Its parameters are apart, so that it is static under `jit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from starflow_jax.sharding.layout import Layout

Params = Mapping[str, Any]  # nested; arrays, of NumPy or of JAX


class CaptionReader(Protocol):
    """Captions to numbers; what data sources need of an encoder, and no more."""

    @property
    def length(self) -> int:
        """L, to which captions are padded, and at which they are cut."""
        ...

    def ids(self, captions: Sequence[str]) -> np.ndarray:
        """Ids int32 [B, L] of captions.

        Raises:
          ValueError: a caption that it cannot read.
        """
        ...

    def known_ids(self, captions: Sequence[str]) -> np.ndarray:
        """Ids int32 [B, L] of any captions: what it cannot read is left out."""
        ...


class TextEncoder(CaptionReader, Protocol):
    """A hashable value; `encode` is a pure function of the parameters and the ids."""

    @property
    def dim(self) -> int:
        """D, width of the states."""
        ...

    def encode(self, params: Params, ids: jax.Array | np.ndarray, layout: Layout | None = None) -> jax.Array:
        """Text states float32 [B, L, D] of ids int32 [B, L]; zeros where a caption has ended.

        layout: over which the parameters lie; None on one device.
        """
        ...
