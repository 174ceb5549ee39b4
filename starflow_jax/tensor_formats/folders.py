"""Named tensors of pretrained models in files: whole, or in shards that an index lists; nothing in them is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from starflow_jax.core.config.checks import check
from starflow_jax.core.files import replacing
from starflow_jax.tensor_formats.opening import LazyTensor, open_tensors

Tensors = Mapping[str, np.ndarray]

_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file, in their own dtypes (bfloat16 is that of ml_dtypes); see `porting.open_tensors`.

    Raises:
      ValueError: no such file, one that is damaged, or of no known format.
    """
    return {name: tensor.read() for name, tensor in open_tensors(path).items()}


def open_folder(folder: Path, stem: str) -> Mapping[str, LazyTensor]:
    """The tensors of `folder` in a file of the name `stem`, or in the shards that its index lists.

    safetensors go before what PyTorch pickled.

    Raises:
      ValueError: nothing of that name, a damaged file, or shards that are not as the index says.
    """
    paths = [folder / f"{stem}{suffix}" for suffix in _SUFFIXES]
    found = [path for path in paths if path.is_file()]
    check(len(found) > 0, f"model file {paths[0]} does not exist, nor {', '.join(path.name for path in paths[1:])}")
    return open_tensors(found[0])


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Writes tensors into one file, whole or not at all, marked as PyTorch's so that its readers take it."""
    with replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary, {"format": "pt"})
