"""Arrays in files that are read on demand, and the dtypes of such files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
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
    "complex128": np.dtype(np.complex128),
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


@dataclass(frozen=True)
class LeftAside:
    """An object in a file of tensors that is not read.

    Attributes:
      path: its keys joined with dots.
      name: the class or function in the file that makes the object.
    """

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path[:120]} ({self.name[:120]})"


class TensorFile(Mapping[str, LazyTensor]):
    """The tensors of a file by name, and what is left aside.

    Attributes:
      left_aside: the objects in the file that are neither tensors nor plain values such as numbers and text.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor], left_aside: Iterable[LeftAside] = ()):
        self._tensors = dict(tensors)
        self.left_aside = tuple(left_aside)

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"TensorFile({self._tensors!r}, left_aside={self.left_aside!r})"


def objects_left_aside(tensors: Mapping[str, LazyTensor]) -> tuple[LeftAside, ...]:
    """The objects that `open_tensors` left aside; none for tensors from elsewhere."""
    return tensors.left_aside if isinstance(tensors, TensorFile) else ()


def object_at(left_aside: Iterable[LeftAside], name: str) -> LeftAside | None:
    """The object that is at the place of a tensor, or of something that would hold it; None if there is none."""
    return next((one for one in left_aside if name == one.path or name.startswith(f"{one.path}.")), None)


def counted(left_aside: Sequence[LeftAside], most: int = 6) -> str:
    """A phrase that counts the objects and names the first of them."""
    some = ", ".join(map(str, left_aside[:most])) + (", ..." if len(left_aside) > most else "")
    what = (
        "1 object that is not a tensor" if len(left_aside) == 1 else f"{len(left_aside)} objects that are not tensors"
    )
    return f"{what}: {some}"


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
