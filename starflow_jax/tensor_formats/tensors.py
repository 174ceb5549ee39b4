"""Arrays in files that are read on demand, and the dtypes of such files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

# Maximum number of values of a view that repeats its storage (stride 0); larger claims are rejected.
_MAX_REPEATED = 2**20

# NumPy dtypes by PyTorch dtype name.
DTYPES: dict[str, np.dtype] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "complex64": np.dtype(np.complex64),
}


class TensorFileError(ValueError):
    """A file of tensors cannot be read; the message is one sentence that names the file."""


@dataclass(frozen=True)
class LazyTensor:
    """An array in a file.

    Attributes:
      shape: shape of the array.
      dtype: NumPy dtype, with bfloat16 and float8 from ml_dtypes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray] = field(repr=False)

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of its values."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Returns the values as a read-only array, if possible a view of the mapped file, which uses no extra memory.

        Raises:
          TensorFileError: an error that is detected only on reading, such as a missing file of a part.
        """
        return self.load()


def view(
    data: memoryview, dtype: np.dtype, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
    """Array over bytes of a file; `check_view` must have accepted it. `offset` and `strides` count values."""
    values = np.frombuffer(data, dtype, len(data) // dtype.itemsize)[offset:]
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    steps = tuple(stride * dtype.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False)


def check_view(values: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> str | None:
    """Returns why an array does not fit into a storage of `values` values, or None if it fits."""
    if len(shape) != len(strides):
        return f"has shape {shape} and strides {strides}"
    if len(shape) > 32 or min((offset, *shape, *strides), default=0) < 0:
        return f"has shape {shape}, strides {strides} and offset {offset}"
    size = math.prod(shape)
    if size == 0:
        return None
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if last >= values:
        return f"of shape {shape} reaches value {last} of a storage of {values}"
    if size > max(values, _MAX_REPEATED):
        return f"of shape {shape} repeats a storage of {values} values"
    return None


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in values, of an array stored row by row."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
