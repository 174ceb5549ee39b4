"""Stand-ins for the names in a PyTorch file: storages, views of storages and dtypes, but no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from starflow_jax.tensor_formats.restricted_pickle import Record, Refused, StandIn
from starflow_jax.tensor_formats.tensors import DTYPES, LazyTensor, check_view, view

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
}
# Classes in a distributed checkpoint's table of contents; their objects have only plain fields.
_RECORDS = (
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.MetadataIndex",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata.BytesStorageMetadata",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.serialization._get_layout",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)


@dataclass
class Storage:
    """A contiguous range of values in a file; in the legacy format `data` is set after views of it are built."""

    dtype: np.dtype
    values: int
    data: memoryview | None = None


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: np.dtype | None = None) -> LazyTensor:
    if not isinstance(storage, Storage) or not _integers((offset,)) or not _integers(shape) or not _integers(strides):
        raise Refused("its pickled part contains an invalid tensor")
    value_dtype = dtype or storage.dtype
    values = storage.values * storage.dtype.itemsize // value_dtype.itemsize
    problem = check_view(values, offset, shape, strides)
    if problem is not None:
        raise Refused(f"a tensor {problem}")

    def load() -> np.ndarray:
        assert storage.data is not None
        return view(storage.data, value_dtype, offset, shape, strides)

    return LazyTensor(shape, value_dtype, load)


def _tensor_of_type(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> LazyTensor:
    """A view with an explicit dtype of an untyped storage."""
    if not isinstance(dtype, StandIn) or not isinstance(dtype.value, np.dtype):
        raise Refused("its pickled part contains a tensor without a type")
    return _tensor(storage, offset, shape, strides, dtype=dtype.value)


def _same(tensor: Any, *_: Any) -> LazyTensor:
    """Returns the tensor of a parameter."""
    if not isinstance(tensor, LazyTensor):
        raise Refused("its pickled part contains a parameter that is not a tensor")
    return tensor


def _from_type(function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
    """Builds a tensor of a derived class, or with attributes, as a plain tensor."""
    if not isinstance(function, StandIn) or function.build is None or not isinstance(arguments, tuple):
        raise Refused("its pickled part contains an invalid tensor")
    return function.build(*arguments)


def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    if pairs:  # an OrderedDict is pickled empty and then filled
        raise Refused("its pickled part builds a dictionary from something else")
    return {}


def _size(values: Any = ()) -> tuple[int, ...]:
    values = tuple(values) if isinstance(values, (tuple, list)) else None
    if values is None or not _integers(values):
        raise Refused("its pickled part contains an invalid shape")
    return values


def _integers(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int for value in values)


def _record(name: str, *arguments: Any) -> Record:
    return Record(name, arguments or None)


def _table() -> Mapping[str, StandIn]:
    entries = [
        StandIn("torch._utils._rebuild_tensor", _tensor),
        StandIn("torch._utils._rebuild_tensor_v2", _tensor),
        StandIn("torch._utils._rebuild_tensor_v3", _tensor_of_type),
        StandIn("torch._utils._rebuild_parameter", _same),
        StandIn("torch._utils._rebuild_parameter_with_state", _same),
        StandIn("torch._tensor._rebuild_from_type_v2", _from_type),
        StandIn("torch.nn.parameter.Parameter", _same),
        StandIn("torch.Tensor"),
        StandIn("torch.Size", _size),
        StandIn("torch.device", partial(_record, "torch.device")),
        StandIn("collections.OrderedDict", _dictionary),
    ]
    entries += [StandIn(f"torch.{name}", value=DTYPES[dtype]) for name, dtype in _STORAGES.items()]
    entries += [StandIn(f"torch.storage.{name}", value=DTYPES["uint8"]) for name in ("UntypedStorage",)]
    entries += [StandIn(f"torch.{name}", value=dtype) for name, dtype in DTYPES.items()]
    entries += [StandIn(name, partial(_record, name)) for name in _RECORDS]
    return {entry.name: entry for entry in entries}


NAMES = _table()


def storage_type(stand_in: Any) -> np.dtype:
    """Returns the dtype of the storage class that a persistent id names."""
    if not isinstance(stand_in, StandIn) or "Storage" not in stand_in.name:
        raise Refused("its pickled part contains an invalid storage")
    dtype: np.dtype = stand_in.value
    return dtype


def named_tensors(value: Any, *, deepest: int = 12, most: int = 2**20) -> dict[str, LazyTensor]:
    """Collects the tensors of nested dictionaries and lists by their keys joined with dots; other values are left out.

    Raises:
      Refused: the structure is too deep or too large, for example because it contains itself.
    """
    tensors: dict[str, LazyTensor] = {}
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    visited = 0
    while waiting:
        prefix, node, depth = waiting.pop()
        visited += 1
        if depth > deepest or visited + len(waiting) > most:
            raise Refused("its pickled part is nested too deeply")
        if isinstance(node, LazyTensor):
            if prefix in tensors:
                raise Refused(f"it has two tensors of the name {prefix!r}")
            tensors[prefix] = node
        elif isinstance(node, (dict, list, tuple)):
            items = list(node.items() if isinstance(node, dict) else enumerate(node))
            join = f"{prefix}." if prefix else ""
            waiting += [(f"{join}{key}", item, depth + 1) for key, item in reversed(items) if _may_hold(item)]
    return tensors


def _may_hold(value: Any) -> bool:
    return isinstance(value, (LazyTensor, dict, list, tuple))
