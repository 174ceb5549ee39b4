"""Stand-ins for the names in a PyTorch file: storages, views of storages and dtypes, but no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from starflow_jax.tensor_formats.pickle_values import Placeholder, Record, Refused, StandIn, key_of
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
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
_BUILTINS = ("set", "frozenset", "bytes", "bytearray", "complex", "slice", "range")
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
)
# Classes and functions whose results are plain values that hold no tensors.
_PLAIN = (
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
    "_codecs.encode",
    "torch.device",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)
# Functions that rebuild tensors of kinds that are not read.
_UNREAD_TENSORS = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a derived class",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "torch._utils._rebuild_xla_tensor": "a tensor of another device",
}
_MAX_AXES = 32


@dataclass
class Storage:
    """A contiguous range of values in a file; in the legacy format `data` is set after views of it are built."""

    dtype: np.dtype
    values: int
    data: memoryview | None = None


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: np.dtype | None = None
) -> LazyTensor | Placeholder:
    if isinstance(storage, Placeholder):
        return Placeholder(storage.name)
    # After requires_grad and hooks, newer files have flags; these two change the values without touching the storage.
    flags = rest[-1] if len(rest) > 2 and isinstance(rest[-1], dict) else {}
    if flags.get("conj") or flags.get("neg"):
        return Placeholder("a tensor that is conjugated or negated on access, torch._utils._rebuild_tensor_v2")
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
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> LazyTensor | Placeholder:
    """A view with an explicit dtype of an untyped storage."""
    if isinstance(dtype, Placeholder):
        return Placeholder(dtype.name)
    if not isinstance(dtype, StandIn) or not isinstance(dtype.value, np.dtype):
        raise Refused("its pickled part contains a tensor without a type")
    return _tensor(storage, offset, shape, strides, grad, hooks, *rest, dtype=dtype.value)


def _same(tensor: Any, *_: Any) -> LazyTensor | Placeholder:
    """Returns the tensor of a parameter."""
    if not isinstance(tensor, (LazyTensor, Placeholder)):
        raise Refused("its pickled part contains a parameter that is not a tensor")
    return tensor


def _from_type(function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
    """Builds a tensor of a derived class, or with attributes, as a plain tensor."""
    if isinstance(function, Placeholder):
        return Placeholder(kind.name if isinstance(kind, Placeholder) else function.name)
    if function not in _TENSOR_FUNCTIONS or not isinstance(arguments, tuple) or len(arguments) > _MAX_AXES:
        raise Refused("its pickled part contains an invalid tensor")
    return function.build(*arguments)


def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    """An OrderedDict, which newer versions of Python pickle empty and then fill, and older ones as a list of pairs."""
    result: dict[Any, Any] = {}
    if isinstance(pairs, dict):  # a Counter
        return pairs
    if not pairs:
        return result
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise Refused("its pickled part builds a dictionary from something else")
    for key, value in pairs:
        result[key_of(key)] = value
    pairs.clear()  # the list belongs to the call; a file that names it again and again takes no more time
    return result


def _default_dictionary(*_: Any) -> dict[Any, Any]:
    return {}


def _queue(*_: Any) -> list[Any]:
    """A deque, which is pickled empty and then filled."""
    return []


def _unread(name: str, *_: Any) -> Placeholder:
    return Placeholder(name)


def _size(values: Any = ()) -> tuple[int, ...] | Placeholder:
    if isinstance(values, Placeholder):
        return values
    values = tuple(values) if isinstance(values, (tuple, list)) and len(values) <= _MAX_AXES else None
    if values is None or not _integers(values):
        raise Refused("its pickled part contains an invalid shape")
    return values


def _integers(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= _MAX_AXES and all(type(value) is int for value in values)


def _record(name: str, *arguments: Any) -> Record:
    return Record(name, arguments or None)


_TENSOR_FUNCTIONS = (
    StandIn("torch._utils._rebuild_tensor", _tensor),
    StandIn("torch._utils._rebuild_tensor_v2", _tensor),
    StandIn("torch._utils._rebuild_tensor_v3", _tensor_of_type),
    StandIn("torch._utils._rebuild_parameter", _same),
    StandIn("torch._utils._rebuild_parameter_with_state", _same),
    *(StandIn(name, partial(_unread, f"{kind}, {name}")) for name, kind in _UNREAD_TENSORS.items()),
)


def _table() -> Mapping[str, StandIn]:
    entries = [
        *_TENSOR_FUNCTIONS,
        StandIn("torch._tensor._rebuild_from_type_v2", _from_type),
        StandIn("torch.nn.parameter.Parameter", _same),
        StandIn("torch.Tensor"),
        StandIn("torch.Size", _size),
        StandIn("collections.OrderedDict", _dictionary),
        StandIn("collections.Counter", _dictionary),
        StandIn("collections.defaultdict", _default_dictionary),
        StandIn("collections.deque", _queue),
    ]
    entries += [StandIn(name, is_plain=True) for name in _PLAIN]
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
