"""Text encoders in folders of Hugging Face's layout, and label tables in files, by what they say they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.models.pretrained_folder import open_pretrained, positive, read_config
from starflow_jax.models.text.gemma import GemmaEmbedder, language_config, read_embedding
from starflow_jax.models.text.labels import LABEL_SUFFIX, LabelTable, read_labels
from starflow_jax.models.text.protocol import CaptionReader, TextEncoder
from starflow_jax.models.text.t5 import T5Config, T5Encoder, read_t5
from starflow_jax.models.text.tokenizer import Tokenizer, read_tokenizer

_T5 = ("t5", "umt5")
_GEMMA = ("gemma2", "gemma3", "gemma3_text")


def load_text_encoder(path: Path, length: int, dtype: str = "float32") -> tuple[TextEncoder, dict[str, Any]]:
    """An encoder and its parameters.

    Args:
      path: a folder with `config.json`, safetensors files and a tokenizer: of T5 or UMT5, whose encoder gives the
        states, or of Gemma 2 or 3, whose token embeddings are the states. Or a label table, a file NAME.vocab.
      length: L, to which captions are padded (1 for a label table).
      dtype: of products and of the parameters, "float32" or "bfloat16".

    Raises:
      ValueError: files that are missing, damaged or of another model.
    """
    if path.suffix == LABEL_SUFFIX:
        return _labels(path, length), {}
    config = read_config(path)
    tokenizer = _tokenizer(path, config, length)
    if _kind(path, config) in _T5:
        sizes = T5Config.of(config)
        return T5Encoder(sizes, tokenizer, dtype), read_t5(open_pretrained(path), sizes, dtype)
    width = positive(language_config(config), "hidden_size")
    return GemmaEmbedder(width, tokenizer), read_embedding(open_pretrained(path), dtype)


def load_caption_reader(path: Path, length: int) -> CaptionReader:
    """What makes ids of captions, without the parameters: all that a data source needs.

    Raises:
      ValueError: see `load_text_encoder`.
    """
    if path.suffix == LABEL_SUFFIX:
        return _labels(path, length)
    return _tokenizer(path, read_config(path), length)


def _labels(path: Path, length: int) -> LabelTable:
    check(length == 1, f"text_length must be 1 for the label table {path}, got {length}")
    return read_labels(path)


def _kind(path: Path, config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    known = (*_T5, *_GEMMA)
    check(kind in known, f"model {path} must be of model_type {', '.join(known)}, got {kind!r}")
    return str(kind)


def _tokenizer(path: Path, config: Mapping[str, Any], length: int) -> Tokenizer:
    """T5 ends a caption, Gemma begins it; what fills up is right of T5's captions and left of Gemma's."""
    if _kind(path, config) in _T5:
        vocabulary = positive(config, "vocab_size")
        marks = {"pad": _id(config, "pad_token_id", 0), "last": _id(config, "eos_token_id", 1)}
        return read_tokenizer(path, ("spiece.model", "tokenizer.json"), length, vocabulary, **marks)
    config = language_config(config)
    vocabulary = positive(config, "vocab_size")
    marks = {"pad": _id(config, "pad_token_id", 0), "first": _id(config, "bos_token_id", 2)}
    # Words of a chat turn are single tokens, which only tokenizer.json is sure to know.
    names = ("tokenizer.json", "tokenizer.model")
    return read_tokenizer(path, names, length, vocabulary, side="left", **marks)


def _id(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    value = default if value is None else value
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    check(ok, f"config.json must give {name} as a token id, got {value!r}")
    return int(value)
