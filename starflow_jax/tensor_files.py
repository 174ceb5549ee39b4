"""Named tensors in safetensors files, whole or in shards: bytes and shapes, nothing that could run.

A folder may hold one file `NAME.safetensors`, or shards with an index `NAME.safetensors.index.json` whose
`weight_map` says which shard holds which tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from starflow_jax.config.checks import check
from starflow_jax.files import replacing

Tensors = Mapping[str, np.ndarray]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file, in their own dtypes (bfloat16 is that of ml_dtypes).

    Raises:
      ValueError: no such file, or one that is damaged.
    """
    check(path.is_file(), f"tensor file {path} does not exist")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"tensor file {path} cannot be read: {str(error).splitlines()[0]}") from error


def read_folder(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The tensors of `folder`, in `name` (which ends in .safetensors) or in the shards that its index lists.

    Raises:
      ValueError: neither is there, a damaged file, or shards that are not as the index says.
    """
    index = folder / f"{name}.index.json"
    if (folder / name).is_file() or not index.is_file():
        return read_tensors(folder / name)
    try:
        shards = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"index {index} must be JSON with a weight_map of tensor names to files") from error
    files = set(shards.values())
    # The names come from a file of someone else: they may not lead out of its folder.
    strange = sorted(str(file) for file in files if not isinstance(file, str) or Path(file).name != file)
    check(not strange, f"index {index} must name files of its folder, got {', '.join(strange[:3])}")
    found: dict[str, np.ndarray] = {}
    for file in sorted(files):
        found |= read_tensors(folder / file)
    missing = sorted(set(shards) - set(found))
    check(not missing, f"index {index} names tensors that its files do not hold: {', '.join(missing[:3])}")
    return {tensor: found[tensor] for tensor in shards}


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Writes tensors into one file, whole or not at all, marked as PyTorch's so that its readers take it."""
    with replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary, {"format": "pt"})
