"""Token embeddings of Gemma 2 and 3 (arXiv 2408.00118, 2503.19786): what a deep block of their shape reads as text.

A pretrained-LM-shaped deep block has no text projection: its text states are the rows of the language model's own
embedding, times the square root of its width, as the language model reads them (specification, section 7).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.models.pretrained_folder import PretrainedFolder, positive
from starflow_jax.models.text.protocol import Params
from starflow_jax.models.text.tokenizer import Tokenizer
from starflow_jax.sharding.layout import Layout, placed

# Where the layers of the language model lie: alone, or inside a model that also reads pictures.
_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")

# What a Gemma 3 is where its configuration does not say (those of the larger models say little).
_GEMMA3 = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}


@dataclasses.dataclass(frozen=True)
class GemmaEmbedder:
    """A `TextEncoder`: scaled token embeddings, zeros where a caption has ended (or not begun).

    Attributes:
      width: D; tokenizer: its vocabulary, and L.
    """

    width: int
    tokenizer: Tokenizer

    @property
    def length(self) -> int:
        """L."""
        return self.tokenizer.length

    @property
    def dim(self) -> int:
        """D."""
        return self.width

    def ids(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids int32 [B, L], the begin-of-text token first."""
        return self.tokenizer.ids(captions)

    def known_ids(self, captions: Sequence[str]) -> np.ndarray:
        """The same."""
        return self.tokenizer.ids(captions)

    def encode(self, params: Params, ids: jax.Array | np.ndarray, layout: Layout | None = None) -> jax.Array:
        """As of `TextEncoder`."""
        ids = jnp.asarray(ids)
        rows = placed(layout, jnp.asarray(params["embedding"])[ids], "hidden").astype(jnp.float32)
        return rows * (math.sqrt(self.width) * self.tokenizer.mask(ids)[:, :, None])


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a `config.json` about the language model: all of it, or `text_config` of one that sees, too.

    Raises:
      ValueError: a `text_config` that is no mapping.
    """
    inner = config.get("text_config", config)
    check(isinstance(inner, Mapping), f"config.json must give text_config as a mapping, got {inner!r}")
    return inner if config.get("model_type") == "gemma2" else {**_GEMMA3, **inner}


def tensor_prefix(folder: PretrainedFolder) -> str:
    """What the names of the language model's tensors begin with in this folder.

    Raises:
      ValueError: no embedding in it.
    """
    for prefix in _PREFIXES:
        if f"{prefix}embed_tokens.weight" in folder:
            return prefix
    raise ValueError(f"model {folder.path} must hold the tensor model.embed_tokens.weight, and does not")


def read_embedding(folder: PretrainedFolder, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The parameters of a `GemmaEmbedder`, in `dtype`.

    Raises:
      ValueError: no embedding in it, or one of another shape.
    """
    config = language_config(folder.config)
    shape = positive(config, "vocab_size"), positive(config, "hidden_size")
    return {"embedding": folder.tensor(f"{tensor_prefix(folder)}embed_tokens.weight", shape).astype(jnp.dtype(dtype))}
