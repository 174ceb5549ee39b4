"""Reads named tensors of pretrained models, from one file or from indexed shards, without executing anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from starflow_jax.core.atomic_writing import replacing
from starflow_jax.core.config.checks import check
from starflow_jax.tensor_formats.tensor_opening import LazyTensor, all_shards, joined, open_tensors

Tensors = Mapping[str, np.ndarray]

_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of one file in their stored dtypes (bfloat16 from ml_dtypes), see `tensor_opening`.

    Raises:
      ValueError: the file is missing, damaged or of an unknown format.
    """
    return {name: tensor.read() for name, tensor in open_tensors(path).items()}


def open_folder(folder: Path, stem: str) -> Mapping[str, LazyTensor]:
    """Opens the tensors of `folder` in the file named `stem`, or in its shards, with an index or without one.

    safetensors files take precedence over PyTorch pickles.

    Raises:
      ValueError: no such file, a damaged file, or shards that do not match the index.
    """
    paths = [folder / f"{stem}{suffix}" for suffix in _SUFFIXES]
    existing = [path for path in paths if path.exists() and not path.is_dir()]
    if not existing:
        for suffix in (".safetensors", ".bin"):
            shards = all_shards(sorted(folder.glob(f"{stem}-*-of-*{suffix}")))
            if shards:
                return joined(folder, shards)
    check(len(existing) > 0, f"model file {paths[0]} does not exist, nor {', '.join(path.name for path in paths[1:])}")
    return open_tensors(existing[0])


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Writes tensors atomically to one safetensors file, with the metadata that PyTorch's readers expect."""
    with replacing(path) as temporary:
        save_file({name: np.asarray(value, order="C") for name, value in tensors.items()}, temporary, {"format": "pt"})
