"""The folder of a published model: the flow as safetensors under the originals' names, and its experiment.

    config.json                    the experiment, without the folders of the machine that trained it
    model.safetensors              the parameters, or shards of them with model.safetensors.index.json
    starflow.json                  the format, the training step, and which frozen models lie beside
    autoencoder/, text_encoder/    frozen models, where the model has them (a file with a suffix for some autoencoders)
    README.md                      the model card

A folder with the first two alone is a published model, too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.build import build, to_json
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.regular_files import read_json
from starflow_jax.core.storage.addresses import is_address
from starflow_jax.core.storage.hub_addresses import is_hub_address
from starflow_jax.hub.published_files import WEIGHTS
from starflow_jax.sampling.model_folder import Part, read_part
from starflow_jax.training.checkpoints.workdir import read_config

PUBLISHED_FILE, CARD_FILE = "starflow.json", "README.md"
FORMAT, VERSION = "starflow-published", 1
FROZEN = ("autoencoder", "text_encoder")
_WORDS = ("vocabulary", "class_names")  # fields of the experiment that are no paths, whatever they begin with


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
      path: of the folder; config: its experiment; weights: the file of the parameters, or the index of its shards.
      step: of the training, None where nothing says so.
      averaged: whether the parameters are known to be an exponential moving average.
      autoencoder, text_encoder: frozen models beside, None for none.
    """

    path: Path
    config: ExperimentConfig
    weights: Path
    step: int | None
    averaged: bool
    autoencoder: Part | None
    text_encoder: Part | None


def read_published(path: Path) -> Published:
    """Reads the description of a published model, and no weights.

    Raises:
      ValueError: `config.json` is not an experiment or has a name that cannot be printed, `starflow.json` is of another
        format, or a frozen model is missing.
    """
    config = read_config(path)
    assert config is not None  # is_published
    if not config.name.isprintable():  # commands print it, and a terminal obeys escape sequences
        raise ValueError(
            f"name of {path / 'config.json'} must have printable characters alone, got {config.name[:80]!r}"
        )
    weights = next(path / name for name in reversed(WEIGHTS) if (path / name).is_file())
    file = path / PUBLISHED_FILE
    if not file.is_file():
        return Published(path, config, weights, None, False, None, None)
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ValueError(f'{file} must have "format": "{FORMAT}" and "version": {VERSION}')
    step = content.get("step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**31):
        raise ValueError(f"step of {file} must be an integer from 0 to 2**31 - 1, got {str(step)[:80]!r}")
    if not isinstance(content.get("ema", False), bool):
        raise ValueError(f"ema of {file} must be true or false, got {str(content['ema'])[:80]!r}")
    parts = {name: read_part(file, content[name], name) if name in content else None for name in FROZEN}
    return Published(path, config, weights, step, content.get("ema", False), **parts)


def description(step: int, ema: bool, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The content of `starflow.json`.

    Args:
      step: of the training; ema: whether the parameters are their exponential moving average.
      parts: the entries of frozen models, see `model_folder.part_entry`.
    """
    return json.dumps({"format": FORMAT, "version": VERSION, "step": step, "ema": ema, **parts}, indent=2) + "\n"


def public_config(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with the last part of every absolute path, of every path with `..` and of every
    address of a store in place of the whole.

    Such paths name folders of one machine and buckets of one owner. Addresses of models on the Hub stay.
    """
    return build(ExperimentConfig, _public(json.loads(to_json(config))))


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: inner if name in _WORDS else _public(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    if isinstance(value, str) and not is_hub_address(value) and _leads_elsewhere(value):
        name = value.rstrip("/").rpartition("/")[2]
        return "data" if name in ("", ".", "..", "~") else name
    return value


def _leads_elsewhere(text: str) -> bool:
    """Whether a text is an address, or a path that may leave the working folder."""
    return text.startswith(("/", "~")) or is_address(text) or ".." in text.split("/")
