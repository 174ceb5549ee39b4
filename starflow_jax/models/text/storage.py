"""Reads text encoders from folders in the layout of Hugging Face, and label tables from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.core.registries import TEXT_ENCODERS
from starflow_jax.core.storage.copies import local_path
from starflow_jax.models.pretrained_folder import read_config
from starflow_jax.models.text.labels import LABEL_SUFFIX, LabelTable, read_labels
from starflow_jax.models.text.protocol import CaptionReader, Params, TextEncoder, TextEncoderFormat

_TENSORS = (".safetensors", ".bin")  # which a tokenizer does not need


def load_text_encoder(path: Path, length: int, dtype: str = "float32") -> tuple[TextEncoder, Params]:
    """Reads an encoder and its parameters.

    Args:
      path: a folder with `config.json`, safetensors files and a tokenizer, whose `model_type` is a name of the registry
        `TEXT_ENCODERS`: T5 and UMT5, whose encoder computes the states, or Gemma 2 and 3, whose token embeddings are
        the states. Or a label table, a file NAME.vocab.
      length: L, the padded length of captions (1 for a label table).
      dtype: of matrix products and parameters, "float32" or "bfloat16".

    Raises:
      ValueError: files are missing, damaged, or of another model.
    """
    path = local_path(path)
    if path.suffix == LABEL_SUFFIX:
        return _labels(path, length), {}
    config = read_config(path)
    return _format(path, config).read_encoder(path, config, length, dtype)


def load_caption_reader(path: Path, length: int) -> CaptionReader:
    """Reads the tokenizer without the parameters, which is all that a data source needs.

    Raises:
      ValueError: see `load_text_encoder`.
    """
    path = local_path(path, lambda name: not name.endswith(_TENSORS))
    if path.suffix == LABEL_SUFFIX:
        return _labels(path, length)
    config = read_config(path)
    return _format(path, config).read_caption_reader(path, config, length)


def _labels(path: Path, length: int) -> LabelTable:
    check(length == 1, f"text_length must be 1 for the label table {path}, got {length}")
    return read_labels(path)


def _format(path: Path, config: Mapping[str, Any]) -> type[TextEncoderFormat]:
    kind = str(config.get("model_type"))
    TEXT_ENCODERS.check(f"model_type of {path}", kind)
    return TEXT_ENCODERS.get(kind)
