"""Folders of pretrained models in the layout of Hugging Face: `config.json`, and tensors.

The tensors are in `model.safetensors` (older folders: `pytorch_model.bin`), or in shards that an index lists. They are
read one at a time, so that a part of a model (the encoder of a T5) takes a part of the memory. No code in the folder
is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from starflow_jax.core import regular_files
from starflow_jax.core.config.checks import check
from starflow_jax.tensor_formats.tensor_folders import open_folder
from starflow_jax.tensor_formats.tensor_opening import LazyTensor
from starflow_jax.tensor_formats.tensors import object_at, objects_left_aside

CONFIG_FILE = "config.json"
STEMS = ("model", "pytorch_model")  # stems of tensor files


@dataclass(frozen=True)
class PretrainedFolder:
    """A folder whose configuration has been read and whose tensors are read on request.

    Attributes:
      path: the folder; config: contents of its `config.json`; tensors: unread tensors by name.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def tensor(self, name: str, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """Reads one tensor in its stored dtype (bfloat16 is that of ml_dtypes).

        Raises:
          ValueError: the tensor is missing, has another shape, or holds values that are not finite floats.
        """
        if name not in self.tensors:
            aside = object_at(objects_left_aside(self.tensors), name)
            what = "" if aside is None else f": {aside} is an object of its file that is not a readable tensor"
            raise ValueError(f"model {self.path} must contain the tensor {name}, and does not{what}")
        tensor = self.tensors[name]
        check(tensor.shape == shape, f"{name} of {self.path} must have shape {list(shape)}, got {list(tensor.shape)}")
        # The kind of ml_dtypes' bfloat16 is "V".
        check(
            tensor.dtype.kind in "fV", f"{name} of {self.path} must contain floating-point numbers, got {tensor.dtype}"
        )
        value = tensor.read()
        check(bool(np.isfinite(value).all()), f"{name} of {self.path} must contain finite numbers")
        return value


def open_pretrained(path: Path) -> PretrainedFolder:
    """Opens a folder: reads its configuration and the names of its tensors.

    Raises:
      ValueError: the folder, its configuration or its tensors are missing or invalid, or shards do not match the index.
    """
    config = read_config(path)
    stem = next((stem for stem in STEMS if any(path.glob(f"{stem}[.-]*"))), STEMS[0])
    return PretrainedFolder(path, config, open_folder(path, stem))


def read_config(path: Path) -> dict[str, Any]:
    """Reads `config.json` of a folder.

    Raises:
      ValueError: the folder or the file is missing, or the file is not a JSON object.
    """
    check(path.is_dir(), f"model {path} must be an existing folder")
    check((path / CONFIG_FILE).is_file(), f"model {path} must contain a {CONFIG_FILE}, and does not")
    return read_json(path / CONFIG_FILE)


def positive(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A positive integer of a configuration.

    Raises:
      ValueError: another value, or no value and no default.
    """
    value = config.get(name, default)
    ok = isinstance(value, int) and not isinstance(value, bool) and value > 0
    check(ok, f"{CONFIG_FILE} must give {name} as an integer above 0, got {value!r}")
    return int(value)


def token_id(config: Mapping[str, Any], name: str, default: int) -> int:
    """A token id of a configuration; `default` where it is missing or null.

    Raises:
      ValueError: another value.
    """
    value = config.get(name, default)
    value = default if value is None else value
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    check(ok, f"{CONFIG_FILE} must give {name} as a token id, got {value!r}")
    return int(value)


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises ValueError for any other contents."""
    value = regular_files.read_json(file)
    check(isinstance(value, dict), f"{file} must contain a JSON object, got {type(value).__name__}")
    return value
