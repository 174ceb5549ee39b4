"""Token embeddings of Gemma 2 and 3 (arXiv 2408.00118, 2503.19786), the text states of a deep block of their shape.

A pretrained-LM-shaped deep block has no text projection: its text states are the token embeddings of the language model
times the square root of its width, which are the inputs of the language model (specification, section 7).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import TEXT_ENCODERS
from starflow_jax.models.pretrained_folder import PretrainedFolder, open_pretrained, positive, token_id
from starflow_jax.models.text.protocol import Params
from starflow_jax.models.text.tokenizer import Tokenizer, read_tokenizer
from starflow_jax.sharding.layout import Layout, placed

# Prefixes of the tensors of the language model: alone, or as a part of a vision-language model.
_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")

# Default values of Gemma 3, which the configurations of the larger models omit.
_GEMMA3 = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}


@dataclasses.dataclass(frozen=True)
class GemmaEmbedder:
    """A `TextEncoder`: scaled token embeddings, zeros at padding.

    Attributes:
      width: D; tokenizer: the tokenizer, which defines L.
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

    def ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Token ids int32 [B, L], beginning with the begin-of-text token."""
        return self.tokenizer.ids(captions)

    def known_ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Returns `ids(captions)`."""
        return self.tokenizer.ids(captions)

    def encode(
        self, params: Params, ids: Int[jax.Array | np.ndarray, "B L"], layout: Layout | None = None
    ) -> Float[Array, "B L D"]:
        """See `TextEncoder.encode`."""
        ids = jnp.asarray(ids)
        rows = placed(layout, jnp.asarray(params["embedding"])[ids], "hidden").astype(jnp.float32)
        return rows * (math.sqrt(self.width) * self.tokenizer.mask(ids)[:, :, None])


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the language model: all of `config.json`, or `text_config` of a vision-language model.

    Raises:
      ValueError: `text_config` is not a mapping.
    """
    inner = config.get("text_config", config)
    check(isinstance(inner, Mapping), f"config.json must give text_config as a mapping, got {inner!r}")
    return inner if config.get("model_type") == "gemma2" else {**_GEMMA3, **inner}


def tensor_prefix(folder: PretrainedFolder) -> str:
    """The prefix of the tensor names of the language model.

    Raises:
      ValueError: the folder has no token embedding.
    """
    for prefix in _PREFIXES:
        if f"{prefix}embed_tokens.weight" in folder:
            return prefix
    raise ValueError(f"model {folder.path} must contain the tensor model.embed_tokens.weight, and does not")


def read_embedding(folder: PretrainedFolder, dtype: str = "float32") -> dict[str, Float[np.ndarray, "V D"]]:
    """Reads the parameters of a `GemmaEmbedder`, in `dtype`.

    Raises:
      ValueError: the embedding is missing or of another shape.
    """
    config = language_config(folder.config)
    shape = positive(config, "vocab_size"), positive(config, "hidden_size")
    return {"embedding": folder.tensor(f"{tensor_prefix(folder)}embed_tokens.weight", shape).astype(jnp.dtype(dtype))}


@TEXT_ENCODERS.register("gemma2")
@TEXT_ENCODERS.register("gemma3")
@TEXT_ENCODERS.register("gemma3_text")
class GemmaFormat:
    """See `TextEncoderFormat`. A begin-of-text token opens a caption; padding is on the left."""

    @staticmethod
    def read_caption_reader(folder: Path, config: Mapping[str, Any], length: int) -> Tokenizer:
        """The tokenizer of `tokenizer.json` or `tokenizer.model`."""
        config = language_config(config)
        marks = {"pad": token_id(config, "pad_token_id", 0), "first": token_id(config, "bos_token_id", 2)}
        # The words of a chat turn are single tokens, which only tokenizer.json is certain to contain.
        names = ("tokenizer.json", "tokenizer.model")
        return read_tokenizer(folder, names, length, positive(config, "vocab_size"), side="left", **marks)

    @staticmethod
    def read_encoder(folder: Path, config: Mapping[str, Any], length: int, dtype: str) -> tuple[GemmaEmbedder, Params]:
        """The token embeddings of the model."""
        tokenizer = GemmaFormat.read_caption_reader(folder, config, length)
        width = positive(language_config(config), "hidden_size")
        return GemmaEmbedder(width, tokenizer), read_embedding(open_pretrained(folder), dtype)
