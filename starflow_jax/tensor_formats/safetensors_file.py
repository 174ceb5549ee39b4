"""Reads the safetensors format: an eight-byte header length, a JSON header and the tensor data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from starflow_jax.core.regular_files import parse_json
from starflow_jax.tensor_formats.tensors import (
    DTYPES,
    LazyTensor,
    LeftAside,
    TensorFile,
    TensorFileError,
    contiguous_strides,
    view,
)

DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E8M0": "float8_e8m0fnu",
}
_MAX_HEADER = 100_000_000  # the limit of the format


def is_safetensors(head: bytes, length: int) -> bool:
    """Whether a file with these first bytes and this length can be in the safetensors format."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= length - 8


def read_safetensors(data: memoryview, name: str) -> TensorFile:
    """Opens the tensors of a file; `name` is the file name for error messages. Types that are not known are left aside.

    Raises:
      TensorFileError: the header is damaged or does not match the data.
    """
    length = int.from_bytes(data[:8], "little")
    if length > min(_MAX_HEADER, len(data) - 8):
        raise TensorFileError(f"{name} cannot be read: its header claims {length} bytes of {len(data)}")
    try:
        header = parse_json(bytes(data[8 : 8 + length]).decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError
    except ValueError as error:
        raise TensorFileError(f"{name} cannot be read: its header is damaged") from error
    numbers = data[8 + length :]
    tensors: dict[str, LazyTensor] = {}
    left_aside: list[LeftAside] = []
    for key, entry in header.items():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if key == "__metadata__":
            continue
        if isinstance(kind, str) and kind not in DTYPE_NAMES:
            left_aside.append(LeftAside(key, f"a tensor of type {kind[:20]}"))
        else:
            tensors[key] = _tensor(key, entry, numbers, name)
    return TensorFile(tensors, left_aside)


def _tensor(key: str, entry: Any, numbers: memoryview, name: str) -> LazyTensor:
    def refuse(reason: str) -> TensorFileError:
        return TensorFileError(f"{name} cannot be read: tensor {key[:120]!r} {reason}")

    try:
        dtype_name, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise refuse("has a damaged entry") from error
    if not isinstance(dtype_name, str):
        raise refuse("has a damaged entry")
    if any(type(number) is not int or not 0 <= number < 2**62 for number in (start, stop, *shape)) or len(shape) > 32:
        raise refuse("has a damaged entry")
    dtype = DTYPES[DTYPE_NAMES[dtype_name]]
    if stop - start != math.prod(shape) * dtype.itemsize or stop > len(numbers):
        raise refuse(f"of shape {shape} does not lie in bytes {start} to {stop} of {len(numbers)}")

    def load() -> np.ndarray:
        return view(numbers[start:stop], dtype, 0, shape, contiguous_strides(shape))

    return LazyTensor(shape, dtype, load)
