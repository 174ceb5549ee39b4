"""Folders of pretrained models in Hugging Face's layout: `config.json`, and tensors in safetensors files.

The tensors are in `model.safetensors`, or in shards that `model.safetensors.index.json` lists. They are read one at a
time, so that half of a model (the encoder of a T5) costs half of the memory. Nothing in such a folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from starflow_jax.config.checks import check

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_MAX_JSON_BYTES = 2**26


@dataclass(frozen=True)
class PretrainedFolder:
    """A folder whose configuration was read and whose tensors are known by name.

    Attributes:
      path: the folder; config: what its `config.json` says; files: which file holds the tensor of a name.
    """

    path: Path
    config: Mapping[str, Any]
    files: Mapping[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor, in its own dtype (bfloat16 is that of ml_dtypes).

        Raises:
          ValueError: it is not there, is not of that shape, holds other than finite floats, or its file is damaged.
        """
        check(name in self.files, f"model {self.path} must hold the tensor {name}, and does not")
        file = self.path / self.files[name]
        try:
            with safe_open(file, framework="numpy") as tensors:
                found = tuple(tensors.get_slice(name).get_shape())
                check(found == shape, f"{name} of {file} must have shape {list(shape)}, got {list(found)}")
                value = tensors.get_tensor(name)
        except (SafetensorError, OSError, TypeError) as error:
            raise ValueError(f"model file {file} cannot be read: {_line(error)}") from error
        check(value.dtype.kind in "fV", f"{name} of {file} must hold floating-point numbers, got {value.dtype}")
        check(bool(np.isfinite(value).all()), f"{name} of {file} must hold finite numbers")
        return value


def open_pretrained(path: Path) -> PretrainedFolder:
    """A folder with its configuration and the names of its tensors.

    Raises:
      ValueError: no folder, no or another configuration, no tensors, or shards that are not as their index says.
    """
    config = read_config(path)
    index = path / f"{WEIGHTS_FILE}.index.json"
    if (path / WEIGHTS_FILE).is_file() or not index.is_file():
        return PretrainedFolder(path, config, dict.fromkeys(_names(path / WEIGHTS_FILE), WEIGHTS_FILE))
    files = _json(index).get("weight_map")
    named = isinstance(files, dict) and all(isinstance(file, str) for file in files.values())
    if not isinstance(files, dict) or not named:
        raise ValueError(f"index {index} must have a weight_map of tensor names to files")
    # The names come from a file of someone else: they may not lead out of its folder.
    strange = sorted(file for file in set(files.values()) if Path(file).name != file)
    check(not strange, f"index {index} must name files of its folder, got {', '.join(strange[:3])}")
    held = {file: _names(path / file) for file in sorted(set(files.values()))}
    missing = sorted(name for name, file in files.items() if name not in held[file])
    check(not missing, f"index {index} names tensors that its files do not hold: {', '.join(missing[:3])}")
    return PretrainedFolder(path, config, files)


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a folder.

    Raises:
      ValueError: no such folder, or no such JSON object in it.
    """
    check(path.is_dir(), f"model {path} must be a folder, and is none")
    check((path / CONFIG_FILE).is_file(), f"model {path} must hold a {CONFIG_FILE}, and does not")
    return _json(path / CONFIG_FILE)


def positive(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number above 0 of a configuration.

    Raises:
      ValueError: another value, or none and no default.
    """
    value = config.get(name, default)
    ok = isinstance(value, int) and not isinstance(value, bool) and value > 0
    check(ok, f"{CONFIG_FILE} must give {name} as a whole number above 0, got {value!r}")
    return int(value)


def _names(file: Path) -> list[str]:
    other = file.with_name("pytorch_model.bin")
    hint = f"; {other.name} must be saved as safetensors first" if other.is_file() else ""
    check(file.is_file(), f"model file {file} does not exist{hint}")
    try:
        with safe_open(file, framework="numpy") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model file {file} cannot be read: {_line(error)}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        size = file.stat().st_size
        check(size <= _MAX_JSON_BYTES, f"{file} must have at most {_MAX_JSON_BYTES} bytes, got {size}")
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {_line(error)}") from error
    check(isinstance(value, dict), f"{file} must hold a JSON object, got {type(value).__name__}")
    return value


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
