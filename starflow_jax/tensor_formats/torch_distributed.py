"""Reads folders of `torch.distributed.checkpoint`: a table of contents, `.metadata`, and files with tensor shards."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.tensor_formats.mapped import map_file
from starflow_jax.tensor_formats.pickle_values import Placeholder, Record, Refused, StandIn
from starflow_jax.tensor_formats.restricted_pickle import MAX_BYTES, load
from starflow_jax.tensor_formats.safetensors_file import is_safetensors, read_safetensors
from starflow_jax.tensor_formats.tensors import LazyTensor, LeftAside, TensorFile, TensorFileError
from starflow_jax.tensor_formats.torch_file import ZIP_MAGIC, read_zip
from starflow_jax.tensor_formats.torch_objects import NAMES

METADATA_FILE = ".metadata"
_MAX_OBJECTS = 2**21  # in the table of contents; a part takes about 15
_MAX_TESTS = 100_000  # pairs of parts that are compared for one tensor


@dataclass(frozen=True)
class _Part:
    """A rectangular part of a tensor, and its byte range in a file."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: Path
    offset: int
    length: int


def read_folder(folder: Path) -> TensorFile:
    """Opens the tensors of a distributed checkpoint; data files are opened only when a tensor is read.

    Raises:
      TensorFileError: the table is damaged, refers to unsupported objects, or points outside of the folder.
    """
    path = folder / METADATA_FILE
    content = map_file(path)
    try:
        if len(content) > MAX_BYTES:
            raise Refused(f"it is longer than {MAX_BYTES} bytes")
        return _read(folder, load(io.BytesIO(content), NAMES, max_objects=_MAX_OBJECTS))
    except Refused as error:
        raise TensorFileError(f"{path} cannot be read: {error}") from error


def _read(folder: Path, table: Any) -> TensorFile:
    metadata = _fields(table, "Metadata")
    entries, storage = metadata.get("state_dict_metadata"), metadata.get("storage_data")
    if not isinstance(entries, dict) or not isinstance(storage, dict):
        raise Refused("it has no table of tensors")
    stored: dict[tuple[str, tuple[int, ...]], Record] = {}
    for key, location in storage.items():
        index = _fields(key, "MetadataIndex")
        name, start = index.get("fqn"), index.get("offset")
        if isinstance(name, str) and (start is None or _integers(start)):
            stored[name, start or ()] = location
    tensors: dict[str, LazyTensor] = {}
    left_aside: list[LeftAside] = []
    for name, entry in entries.items():
        if isinstance(entry, Record) and entry.name.endswith(".BytesStorageMetadata"):
            continue  # not a tensor
        if not isinstance(name, str):
            raise Refused("it has an invalid name")
        if (other := _other_kind(entry)) is not None:
            left_aside.append(LeftAside(name, other))
            continue
        tensors[name] = _tensor(folder, name, _fields(entry, "TensorStorageMetadata"), stored)
    return TensorFile(tensors, left_aside)


def _other_kind(entry: Any) -> str | None:
    """The class of an entry, or the dtype of a tensor, that is not known here."""
    if isinstance(entry, Placeholder):
        return entry.name
    if isinstance(entry, Record) and isinstance(entry.state, dict):
        first = _first_property(entry.state.get("properties"))
        return first.name if isinstance(first, Placeholder) else None
    return None


def _tensor(
    folder: Path, name: str, entry: dict[str, Any], stored: dict[tuple[str, tuple[int, ...]], Record]
) -> LazyTensor:
    shape, dtype = entry.get("size"), _dtype(entry.get("properties"))
    chunks = entry.get("chunks")
    if not _integers(shape) or dtype is None or not isinstance(chunks, list):
        raise Refused(f"tensor {name[:120]!r} has a damaged entry")
    assert shape is not None
    parts = []
    for chunk in chunks:
        box = _fields(chunk, "ChunkStorageMetadata")
        start, size = box.get("offsets"), box.get("sizes")
        if not _integers(start) or not _integers(size) or (start, size) == (None, None):
            raise Refused(f"tensor {name[:120]!r} has a damaged entry")
        assert start is not None and size is not None
        location = stored.get((name, start)) or (stored.get((name, ())) if not any(start) else None)
        if location is None:
            raise Refused(f"tensor {name[:120]!r} has a part without a location")
        parts.append(_part(folder, name, start, size, _fields(location, "_StorageInfo")))
    _check_cover(name, shape, parts)
    return LazyTensor(shape, dtype, lambda: _assemble(name, shape, dtype, parts))


def _part(folder: Path, name: str, start: tuple[int, ...], size: tuple[int, ...], location: dict[str, Any]) -> _Part:
    file, offset, length = location.get("relative_path"), location.get("offset"), location.get("length")
    if not isinstance(file, str) or file in ("", ".", "..") or any(sign in file for sign in "/\\\0"):
        raise Refused(f"tensor {name[:120]!r} lies in {str(file)[:120]!r}, which is not a file name in its folder")
    if not _integers((offset, length)):
        raise Refused(f"tensor {name[:120]!r} has a damaged entry")
    if location.get("transform_descriptors"):
        raise Refused(f"tensor {name[:120]!r} is compressed, which is not supported")
    assert isinstance(offset, int) and isinstance(length, int)
    return _Part(start, size, folder / file, offset, length)


def _check_cover(name: str, shape: tuple[int, ...], parts: list[_Part]) -> None:
    """Checks that the parts lie within the tensor, do not overlap and cover it."""
    for part in parts:
        ends = [begin + length for begin, length in zip(part.start, part.shape, strict=False)]
        if len(part.start) != len(shape) or len(part.shape) != len(shape):
            raise Refused(f"tensor {name[:120]!r} has a part with other axes")
        if any(end > whole for end, whole in zip(ends, shape, strict=True)):
            raise Refused(f"tensor {name[:120]!r} of shape {shape} has a part beyond its end")
    if len(parts) > 4096:
        raise Refused(f"tensor {name[:120]!r} has {len(parts)} parts")
    filled = sorted((part for part in parts if math.prod(part.shape)), key=lambda part: part.start)
    tests = 0
    for index, one in enumerate(filled):
        for other in itertools.islice(filled, index + 1, None):
            if shape and other.start[0] >= one.start[0] + one.shape[0]:
                break  # parts are sorted, so no later part begins within these rows
            tests += 1
            if tests > _MAX_TESTS:
                raise Refused(f"tensor {name[:120]!r} is split into too many overlapping ranges to check")
            if all(
                a < b + m and b < a + n
                for a, n, b, m in zip(one.start, one.shape, other.start, other.shape, strict=True)
            ):
                raise Refused(f"tensor {name[:120]!r} has parts that overlap")
    if sum(math.prod(part.shape) for part in parts) != math.prod(shape):
        raise Refused(f"tensor {name[:120]!r} of shape {shape} is incomplete")


def _assemble(name: str, shape: tuple[int, ...], dtype: np.dtype, parts: list[_Part]) -> np.ndarray:
    if len(parts) == 1:
        return _read_part(name, dtype, parts[0])
    array = np.empty(shape, dtype)
    for part in parts:
        box = tuple(slice(start, start + length) for start, length in zip(part.start, part.shape, strict=True))
        array[box] = _read_part(name, dtype, part)
    array.flags.writeable = False
    return array


def _read_part(name: str, dtype: np.dtype, part: _Part) -> np.ndarray:
    data = map_file(part.file)[part.offset : part.offset + part.length]
    where = f"{part.file} (tensor {name!r})"
    head = bytes(data[:16])
    if len(data) != part.length:
        raise TensorFileError(f"{where} is cut short")
    if head[:4] == ZIP_MAGIC:
        tensors = read_zip(data, where)
    elif is_safetensors(head, len(data)):
        tensors = read_safetensors(data, where)
    else:
        raise TensorFileError(f"{where} cannot be read: its part is in an unknown format")
    values = list(tensors.values())
    if len(values) != 1 or (values[0].shape, values[0].dtype) != (part.shape, dtype):
        raise TensorFileError(f"{where} cannot be read: its part is not the {dtype} {part.shape} that the table says")
    return values[0].read()


def _fields(record: Any, kind: str) -> dict[str, Any]:
    """Returns the fields of an object of class `kind`; raises Refused for any other object."""
    if not isinstance(record, Record) or not record.name.endswith(f".{kind}") or not isinstance(record.state, dict):
        raise Refused(f"it lacks a {kind}")
    return record.state


def _dtype(properties: Any) -> np.dtype | None:
    first = _first_property(properties)
    value = first.value if isinstance(first, StandIn) else None
    return value if isinstance(value, np.dtype) else None


def _first_property(properties: Any) -> Any:
    """The dtype is the first of the properties, which are pickled as a tuple or as named fields."""
    state = properties.state if isinstance(properties, Record) else None
    return state.get("dtype") if isinstance(state, dict) else state[0] if isinstance(state, tuple) and state else None


def _integers(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) <= 32
        and all(type(value) is int and 0 <= value < 2**62 for value in values)
    )
