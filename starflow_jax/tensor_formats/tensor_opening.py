"""Opens a file or folder of tensors, whatever its format: safetensors, `torch.save`, distributed checkpoints.

PyTorch is not needed, nothing in a file is executed, and values are loaded when a tensor is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starflow_jax.tensor_formats.mapped import map_file
from starflow_jax.tensor_formats.safetensors_file import is_safetensors, read_safetensors
from starflow_jax.tensor_formats.tensors import LazyTensor, TensorFileError
from starflow_jax.tensor_formats.torch_distributed import METADATA_FILE, read_folder
from starflow_jax.tensor_formats.torch_file import ZIP_MAGIC, is_legacy, read_legacy, read_zip

__all__ = ["LazyTensor", "TensorFileError", "open_tensors"]

_INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_FORMATS = "safetensors, torch.save (zip or older), an index of such files, or a torch.distributed.checkpoint folder"
_MAX_INDEX = 2**26


def open_tensors(path: Path | str) -> Mapping[str, LazyTensor]:
    """Opens the named tensors of a file or folder; the format is detected from the content.

    Args:
      path: a file of safetensors or of `torch.save`; the index (JSON) of such a file in several shards; a folder of
        `torch.distributed.checkpoint`; a folder that contains one such index or one such file.

    Returns:
      Tensors by name. Keys of nested dictionaries are joined by dots; values other than tensors are left out.

    Raises:
      TensorFileError: the file is missing, damaged, of an unknown format, or refers to objects other than tensors;
        the message is one sentence that names the file.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    data = map_file(path)
    head = bytes(data[:64])
    if head[:4] == ZIP_MAGIC:
        return read_zip(data, str(path))
    if is_legacy(head):
        return read_legacy(data, str(path))
    if is_safetensors(head, len(data)):
        return read_safetensors(data, str(path))
    if head.lstrip()[:1] == b"{":
        return _open_index(path, data)
    if head.startswith(b"version https://git-lfs"):
        raise TensorFileError(f"{path} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")
    if head[8:9] == b"{":
        raise TensorFileError(f"{path} is cut short, or its header claims {int.from_bytes(head[:8], 'little')} bytes")
    raise TensorFileError(f"{path} is in an unknown format: {_FORMATS}")


def _open_folder(folder: Path) -> Mapping[str, LazyTensor]:
    if (folder / METADATA_FILE).is_file():
        return read_folder(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for suffixes in (_INDEX_SUFFIXES, _FILE_SUFFIXES):
        matches = [path for path in files if path.name.endswith(suffixes)]
        if len(matches) > 1:
            names = ", ".join(path.name for path in matches[:8])
            raise TensorFileError(f"{folder} contains several files of tensors, name one: {names}")
        if matches:
            return open_tensors(matches[0])
    raise TensorFileError(f"{folder} contains no tensors: expected {METADATA_FILE}, or one {', '.join(_FILE_SUFFIXES)}")


def _open_index(path: Path, data: memoryview) -> Mapping[str, LazyTensor]:
    """Opens the tensors of a sharded file from the index that maps each name to its shard."""
    try:
        content: Any = json.loads(bytes(data).decode("utf-8")) if len(data) <= _MAX_INDEX else None
    except (ValueError, RecursionError):
        content = None
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict):
        raise TensorFileError(f"{path} is not an index of tensors: it has no table 'weight_map'")
    pieces: dict[str, Mapping[str, LazyTensor]] = {}
    tensors = {}
    for name, file in table.items():
        if not isinstance(file, str) or file in ("", ".", "..") or any(sign in file for sign in "/\\\0"):
            raise TensorFileError(f"{path} names {str(file)[:120]!r}, which is not a file name in its folder")
        if file == path.name:
            raise TensorFileError(f"{path} lists itself as a part")
        if file not in pieces:
            pieces[file] = _open_piece(path.with_name(file))
        if name not in pieces[file]:
            raise TensorFileError(f"{path} lists {name[:120]!r} in {file}, which does not contain it")
        tensors[name] = pieces[file][name]
    return tensors


def _open_piece(path: Path) -> Mapping[str, LazyTensor]:
    if path.suffix == ".json" or path.is_dir():  # an index of indices could recurse without end
        raise TensorFileError(f"{path} is not a file of tensors")
    data = map_file(path)
    if bytes(data[:64]).lstrip()[:1] == b"{":
        raise TensorFileError(f"{path} is not a file of tensors")
    return open_tensors(path)
