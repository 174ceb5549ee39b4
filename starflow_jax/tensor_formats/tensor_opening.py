"""Opens a file or folder of tensors, whatever its format: safetensors, `torch.save`, distributed checkpoints.

PyTorch is not needed, nothing in a file is executed, and values are loaded when a tensor is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.regular_files import parse_json
from starflow_jax.tensor_formats.mapped import map_file
from starflow_jax.tensor_formats.safetensors_file import is_safetensors, read_safetensors
from starflow_jax.tensor_formats.tensors import LazyTensor, LeftAside, TensorFile, TensorFileError, object_at
from starflow_jax.tensor_formats.torch_distributed import METADATA_FILE, read_folder
from starflow_jax.tensor_formats.torch_file import ZIP_MAGIC, is_legacy, read_legacy, read_zip

__all__ = ["LazyTensor", "TensorFile", "TensorFileError", "open_tensors"]

_INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_FORMATS = "safetensors, torch.save (zip or older), an index of such files, or a torch.distributed.checkpoint folder"
_MAX_INDEX = 2**26
_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?P<suffix>\.[a-z]+)")
_MAX_SHARDS = 10**4


def open_tensors(path: Path | str) -> TensorFile:
    """Opens the named tensors of a file or folder; the format is detected from the content.

    Args:
      path: a file of safetensors or of `torch.save`; the index (JSON) of such a file in several shards; a folder of
        `torch.distributed.checkpoint`; a folder that contains one such index, one such file, or all shards of one
        (`NAME-00001-of-00003.safetensors`).

    Returns:
      Tensors by name. Keys of nested dictionaries are joined by dots. Numbers, text and other plain values are left
      out; objects of other classes are in `left_aside`, and nothing of them is executed.

    Raises:
      TensorFileError: the path leads to no regular file or folder, the file is damaged or of an unknown format, or it
        holds one object instead of named tensors; the message is one sentence that names the file.
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


def _open_folder(folder: Path) -> TensorFile:
    if (folder / METADATA_FILE).is_file():
        return read_folder(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for suffixes in (_INDEX_SUFFIXES, _FILE_SUFFIXES):
        candidates = [path for path in files if path.name.endswith(suffixes)]
        if suffixes == _FILE_SUFFIXES and (shards := all_shards(candidates)):
            return joined(folder, shards)
        if len(candidates) > 1:
            names = ", ".join(path.name for path in candidates[:8])
            raise TensorFileError(f"{folder} contains several files of tensors, name one: {names}")
        if candidates:
            return open_tensors(candidates[0])
    raise TensorFileError(f"{folder} contains no tensors: expected {METADATA_FILE}, or one {', '.join(_FILE_SUFFIXES)}")


def all_shards(files: Sequence[Path]) -> list[Path]:
    """The files in order if they are the shards of one file, `NAME-00001-of-00003.SUFFIX`; else an empty list.

    Raises:
      TensorFileError: some of the shards are missing.
    """
    matches = [_SHARD.fullmatch(path.name) for path in files]
    groups = {(match["name"], int(match["count"]), match["suffix"]) for match in matches if match}
    if len(groups) != 1 or not all(matches):
        return []
    (name, count, suffix), by_number = groups.pop(), {}
    for path, match in zip(files, matches, strict=True):
        by_number[int(match["number"]) if match else 0] = path
    missing = [number for number in range(1, min(count, _MAX_SHARDS) + 1) if number not in by_number]
    if missing or len(by_number) != len(files) or count != len(files):
        raise TensorFileError(
            f"{files[0].parent} contains {len(files)} of the {count} shards of {name}{suffix}"
            + (f"; number {missing[0]} is missing" if missing else "")
        )
    return [by_number[number] for number in sorted(by_number)]


def joined(folder: Path, shards: Sequence[Path]) -> TensorFile:
    """The tensors of all shards, which have no index."""
    tensors: dict[str, LazyTensor] = {}
    left_aside: list[LeftAside] = []
    for shard in shards:
        opened = _open_piece(shard)
        twice = next((name for name in opened if name in tensors), None)
        if twice is not None:
            raise TensorFileError(f"{folder} contains the tensor {twice[:120]!r} in two shards, again in {shard.name}")
        tensors |= opened
        left_aside += opened.left_aside
    return TensorFile(tensors, left_aside)


def _open_index(path: Path, data: memoryview) -> TensorFile:
    """Opens the tensors of a sharded file from the index that maps each name to its shard."""
    try:
        content: Any = parse_json(bytes(data).decode("utf-8")) if len(data) <= _MAX_INDEX else None
    except ValueError:
        content = None
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict):
        raise TensorFileError(f"{path} is not an index of tensors: it has no table 'weight_map'")
    pieces: dict[str, TensorFile] = {}
    tensors = {}
    for name, file in table.items():
        if not isinstance(file, str) or file in ("", ".", "..") or any(sign in file for sign in "/\\\0"):
            raise TensorFileError(f"{path} names {str(file)[:120]!r}, which is not a file name in its folder")
        if file == path.name:
            raise TensorFileError(f"{path} lists itself as a part")
        if file not in pieces:
            pieces[file] = _open_piece(path.with_name(file))
        if name not in pieces[file] and object_at(pieces[file].left_aside, name) is not None:
            continue  # it is left aside
        if name not in pieces[file]:
            raise TensorFileError(f"{path} lists {name[:120]!r} in {file}, which does not contain it")
        tensors[name] = pieces[file][name]
    return TensorFile(tensors, (one for piece in pieces.values() for one in piece.left_aside))


def _open_piece(path: Path) -> TensorFile:
    if path.suffix == ".json" or path.is_dir():  # an index of indices could recurse without end
        raise TensorFileError(f"{path} is not a file of tensors")
    data = map_file(path)
    if bytes(data[:64]).lstrip()[:1] == b"{":
        raise TensorFileError(f"{path} is not a file of tensors")
    return open_tensors(path)
