"""Reads files of `torch.save`: the current zip archive, and the legacy stream of pickles and storages."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any, TypeVar

from starflow_jax.tensor_formats.mapped import ViewStream
from starflow_jax.tensor_formats.nested_tensors import named_tensors
from starflow_jax.tensor_formats.pickle_values import Placeholder, Refused
from starflow_jax.tensor_formats.restricted_pickle import MAX_BYTES, load
from starflow_jax.tensor_formats.tensors import TensorFile, TensorFileError
from starflow_jax.tensor_formats.torch_objects import NAMES, Storage, storage_type

ZIP_MAGIC = b"PK\x03\x04"
# The legacy format begins with a pickle (protocol 2 or later) of this integer.
_LEGACY_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
LEGACY_MAGIC = b"\x8a\x0a" + _LEGACY_NUMBER.to_bytes(10, "little")
_LOCAL_HEADER = struct.Struct("<4s22xHH")

T = TypeVar("T")


def is_legacy(head: bytes) -> bool:
    """Whether a file with these first bytes is in the legacy format."""
    return head[:1] == b"\x80" and LEGACY_MAGIC in head[:32]


def read_zip(data: memoryview, name: str) -> TensorFile:
    """Opens the tensors of a zip archive of `torch.save`; `name` is the file name for error messages.

    Raises:
      TensorFileError: the archive is damaged, is not from `torch.save`, or refers to unsupported objects.
    """
    return _sentence(name, lambda: _read_zip(data))


def read_legacy(data: memoryview, name: str) -> TensorFile:
    """Opens the tensors of a file in the legacy format; `name` is the file name for error messages.

    Raises:
      TensorFileError: as in `read_zip`.
    """
    return _sentence(name, lambda: _read_legacy(data))


def _sentence(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except Refused as error:
        raise TensorFileError(f"{name} cannot be read: {error}") from error


def _read_zip(data: memoryview) -> TensorFile:
    try:
        with zipfile.ZipFile(ViewStream(data)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    # zipfile raises these for damaged directories; NotImplementedError for an unknown zip version.
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, struct.error) as error:
        raise Refused("the zip archive is damaged or cut short") from error
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused("the zip archive contains no tensors: it needs one data.pkl")
    root = pickles[0].removesuffix("data.pkl")

    def content(name: str) -> memoryview:
        if name not in entries:
            raise Refused(f"the zip archive has no {name!r}")
        return _stored(data, entries[name])

    if f"{root}byteorder" in entries and bytes(content(f"{root}byteorder")[:16]) != b"little":
        raise Refused("its values are not little-endian")
    storages: dict[str, Storage] = {}

    def persistent(key: Any) -> Storage | Placeholder:
        if isinstance(other := _other_object(key), Placeholder):
            return other
        dtype, key, values = _storage_key(key)
        if key not in storages:
            content_bytes = content(f"{root}data/{key}")
            if len(content_bytes) != values * dtype.itemsize:
                raise Refused(
                    f"storage {key!r} should have {values * dtype.itemsize} bytes and has {len(content_bytes)}"
                )
            storages[key] = Storage(dtype, values, content_bytes)
        return _same_storage(storages[key], dtype, values, key)

    pickled = content(pickles[0])
    if len(pickled) > MAX_BYTES:
        raise Refused(f"its pickled part is longer than {MAX_BYTES} bytes")
    return named_tensors(load(io.BytesIO(pickled), NAMES, persistent))


def _stored(data: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """Returns the bytes of an entry as a view of the archive."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        raise Refused(f"the entry {entry.filename!r} of the zip archive is compressed, which storages never are")
    header = data[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size]
    if entry.header_offset < 0 or len(header) < _LOCAL_HEADER.size:
        raise Refused("the zip archive is damaged or cut short")
    magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    start = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if magic != ZIP_MAGIC or start + entry.file_size > len(data):
        raise Refused("the zip archive is damaged or cut short")
    return data[start : start + entry.file_size]


def _other_object(key: Any) -> Placeholder | None:
    """The placeholder of a persistent id that is no storage of a known type; None for a storage."""
    if not isinstance(key, tuple) or len(key) < 2 or not isinstance(key[1], Placeholder):
        return None
    # Old versions of PyTorch wrote the source of a module's class beside it.
    return Placeholder(key[1].name) if key[0] in ("storage", "module") else None


def _storage_key(key: Any) -> tuple[Any, str, int]:
    """Returns (dtype, name, number of values) of a persistent id."""
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage":
        raise Refused("its pickled part contains an invalid storage")
    _, kind, name, _, values = key[:5]
    if not isinstance(name, str) or type(values) is not int or not 0 <= values < 2**48:
        raise Refused("its pickled part contains an invalid storage")
    return storage_type(kind), name, values


def _same_storage(storage: Storage, dtype: Any, values: int, key: str) -> Storage:
    if (storage.dtype, storage.values) == (dtype, values):
        return storage
    if storage.values * storage.dtype.itemsize != values * dtype.itemsize:
        raise Refused(f"storage {key!r} is described twice, and differently")
    return Storage(dtype, values, storage.data)


def _read_legacy(data: memoryview) -> TensorFile:
    stream: IO[bytes] = ViewStream(data)  # type: ignore[assignment]
    storages: dict[str, Storage] = {}

    def persistent(key: Any) -> Storage | Placeholder:
        if isinstance(other := _other_object(key), Placeholder):
            if key[0] == "storage":
                raise Refused(f"it contains a storage of the type {other.name!r}, whose size is not known")
            return other
        if isinstance(key, tuple) and len(key) == 6 and key[5] is not None:
            raise Refused("it contains views of storages in a form that PyTorch no longer writes")
        dtype, name, values = _storage_key(key)
        storage = storages.setdefault(name, Storage(dtype, values))
        if (storage.dtype, storage.values) != (dtype, values):
            raise Refused(f"storage {name!r} is described twice, and differently")
        return storage

    if load(stream, {}, integer_bits=80) != _LEGACY_NUMBER or load(stream, {}) != _LEGACY_VERSION:
        raise Refused("its version of the older format is unknown")
    system = load(stream, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("its values are not little-endian")
    tensors = named_tensors(load(stream, NAMES, persistent))
    order = load(stream, {})
    if not isinstance(order, list) or not all(isinstance(key, str) for key in order) or set(order) != set(storages):
        raise Refused("its list of storages does not match its tensors")
    position = stream.tell()
    for key in order:
        storage = storages[key]
        length = storage.values * storage.dtype.itemsize
        if int.from_bytes(data[position : position + 8], "little") != storage.values or position + 8 + length > len(
            data
        ):
            raise Refused(f"it is cut short, or storage {key!r} does not have its {storage.values} values")
        storage.data = data[position + 8 : position + 8 + length]
        position += 8 + length
    return tensors
