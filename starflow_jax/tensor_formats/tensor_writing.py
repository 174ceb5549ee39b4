"""Writes named tensors one by one to a file that PyTorch reads: safetensors, or the format of `torch.load`."""

from __future__ import annotations

import itertools
import json
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from starflow_jax.core.atomic_writing import replacing, write_text

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
STEM, INDEX_FILE = "model", "model.safetensors.index.json"  # of shards
_CODES = {"float32": "F32", "int8": "I8", "uint8": "U8", "float8_e4m3fn": "F8_E4M3"}
_ALIGNMENT = 64  # of storages in a file, as in PyTorch
_LOCAL_HEADER, _ZIP64_EXTRA = 30, 20  # bytes before an entry's data, without its name and other extra fields


class TensorSpec(Protocol):
    """Name and shape of one tensor in the file."""

    @property
    def name(self) -> str:
        """The name of the tensor."""

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the tensor, float32 but in safetensors."""


def write_tensors(path: Path, entries: Sequence[TensorSpec], values: Iterable[np.ndarray]) -> None:
    """Writes tensors atomically, of float32 but in safetensors: the file appears only after all tensors are written.

    Args:
      path: a path that ends in one of `SUFFIXES`.
      entries: names and `torch_shape`s of the tensors.
      values: the tensors in the same order; each is released before the next is requested.

    Raises:
      ValueError: the path has another suffix, or iterating over `values` raises it.
      OSError: the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a file of tensors must end in {', '.join(SUFFIXES)}, got {path.name!r}")
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            _write_safetensors(temporary, entries, values)
        else:
            _write_zip(temporary, entries, values)


def write_shards(
    folder: Path, entries: Sequence[TensorSpec], values: Iterable[np.ndarray], shard_bytes: int
) -> list[Path]:
    """Writes tensors as `model.safetensors`, or as shards with `model.safetensors.index.json`.

    Args:
      folder: an existing folder, which a caller replaces whole.
      entries, values: see `write_tensors`.
      shard_bytes: of a file at most; a larger tensor has a file of its own.

    Returns:
      The files.
    """
    groups = _shards(entries, shard_bytes)
    remaining = iter(values)
    for name, group in groups.items():
        # The number of values is checked where the last tensor of a file is written.
        write_tensors(folder / name, group, itertools.islice(remaining, len(group)))
    written = [folder / name for name in groups]
    if len(groups) > 1:
        table = {entry.name: name for name, group in groups.items() for entry in group}
        content = {"metadata": {"total_size": sum(map(_bytes, entries))}, "weight_map": table}
        written.append(folder / INDEX_FILE)
        write_text(written[-1], json.dumps(content, indent=2) + "\n")
    return written


def shard_sizes(entries: Sequence[TensorSpec], shard_bytes: int) -> dict[str, int]:
    """The names of the files that `write_shards` writes, without the index, and the bytes of their tensors."""
    return {name: sum(map(_bytes, group)) for name, group in _shards(entries, shard_bytes).items()}


def _shards(entries: Sequence[TensorSpec], shard_bytes: int) -> dict[str, list[TensorSpec]]:
    groups: list[list[TensorSpec]] = []
    size = 0
    for entry in entries:
        if not groups or size + _bytes(entry) > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += _bytes(entry)
    if len(groups) == 1:
        return {f"{STEM}.safetensors": groups[0]}
    count = len(groups)
    return {f"{STEM}-{number:05d}-of-{count:05d}.safetensors": group for number, group in enumerate(groups, 1)}


def _write_safetensors(path: Path, entries: Sequence[TensorSpec], values: Iterable[np.ndarray]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        length = _bytes(entry)
        header[entry.name] = {
            "dtype": _CODES[entry.dtype.name],
            "shape": list(entry.torch_shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry, value in zip(entries, values, strict=True):
            file.write(_content(entry, value))


def _write_zip(path: Path, entries: Sequence[TensorSpec], values: Iterable[np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), _pickled(entries))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
        for index, (entry, value) in enumerate(zip(entries, values, strict=True)):
            information = zipfile.ZipInfo(f"archive/data/{index}")
            assert archive.fp is not None
            start = archive.fp.tell() + _LOCAL_HEADER + len(information.filename) + _ZIP64_EXTRA + 4
            padding = -start % _ALIGNMENT
            information.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            with archive.open(information, "w", force_zip64=True) as file:
                file.write(_content(entry, value))


def _content(entry: TensorSpec, value: np.ndarray) -> memoryview:
    value = np.ascontiguousarray(value)
    assert (value.shape, value.dtype) == (entry.torch_shape, entry.dtype), (entry, value.shape, value.dtype)
    return value.reshape(-1).view(np.uint8).data


def _bytes(entry: TensorSpec) -> int:
    return int(np.prod(entry.torch_shape, dtype=np.int64)) * entry.dtype.itemsize


def _pickled(entries: Sequence[TensorSpec]) -> bytes:
    """Pickles an OrderedDict of name to tensor with the same protocol 2 operations as PyTorch."""
    parts = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    for index, entry in enumerate(entries):
        values = int(np.prod(entry.torch_shape, dtype=np.int64))
        strides = [
            int(np.prod(entry.torch_shape[axis + 1 :], dtype=np.int64)) for axis in range(len(entry.torch_shape))
        ]
        storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(index)) + _text("cpu")
        parts += [
            _text(entry.name),
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            storage + _integer(values) + b"tQ",
            _integer(0) + _tuple(entry.torch_shape) + _tuple(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",  # requires_grad=False, no hooks
        ]
    return b"".join([*parts, b"u."])


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(8, "little")
    return b"\x8a\x08" + encoded


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
