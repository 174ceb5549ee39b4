"""Checkpoints of parameters that do not fit in memory: written and read piece by piece.

The files have the array format and the checksums that `Checkpoints` reads.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.config.build import to_json
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.training.checkpoints.digests import digest_from_sums, json_digest, keys_by_path, partial_sum
from starflow_jax.training.checkpoints.parts import DIGESTS, Unusable
from starflow_jax.training.step.optimizer import Params

# A commit of the store flushes everything written since the last one; this bounds what is buffered.
_DATA_FILE_BYTES = 2**28
_PENDING_BYTES = 2**27


@dataclass(frozen=True)
class Streamed:
    """A parameter to be written piece by piece, a leaf of a tree.

    Attributes:
      shape, dtype: of the whole parameter.
      chunk: shape of the chunks in the file; a piece covers whole chunks.
      pieces: yields (index along the first axis, or None for all of it; the piece without that axis).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    pieces: Callable[[], Iterator[tuple[int | None, np.ndarray]]]


def write_params_checkpoint(folder: Path, config: ExperimentConfig, tree: Params, step: int = 0) -> None:
    """Writes a checkpoint of parameters without optimizer state into `folder`, which must not exist.

    Args:
      config: of the run; step: that the checkpoint records, the name of its folder.
      tree: nested dictionaries of `Streamed`; at most two pieces are in memory at a time.

    Raises:
      ValueError, OSError: from reading the pieces or writing; the caller removes the incomplete folder.
    """
    handler = _Handler()
    registry = ocp.type_handlers.create_type_handler_registry((Streamed, handler))
    pytree = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(pytree) as checkpointer:
        checkpointer.save(folder / "params", args=ocp.args.PyTreeSave(tree))
    names = keys_by_path(tree)
    parts = {"loader": {}, "config": json.loads(to_json(config)), "figures": {}}
    digests = {"step": step, **{name: json_digest(value) for name, value in parts.items()}}
    digests["params"] = digest_from_sums({names[name]: value for name, value in handler.sums.items()})
    for name, value in {**parts, DIGESTS: digests}.items():
        (folder / name).mkdir()
        write_text(folder / name / "metadata", json.dumps(value))


class _Handler(ocp.type_handlers.TypeHandler):
    """The Orbax type handler of `Streamed`: writes it like a JAX array, piece by piece."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}  # sums of every parameter, for its checksum

    def typestr(self) -> str:
        return "jax.Array"

    async def serialize(self, values: Sequence[Streamed], infos: Any, args: Any = None) -> list[Any]:
        pending = _Pending()
        for info in infos:
            if hasattr(info, "await_path_creation"):  # not before Orbax 0.12
                await info.await_path_creation()
        opening = [
            ts.open(_write_spec(info, value), create=True, open=True, context=info.ts_context)
            for value, info in zip(values, infos, strict=True)
        ]
        try:
            for value, info, opened in zip(values, infos, opening, strict=True):
                self.sums[info.name] = _write(opened.result(), value, pending)
            pending.wait(0)
        finally:
            pending.drain()
            for opened in opening:
                with contextlib.suppress(Exception):
                    opened.result()
        return []

    # Required by the interface. Orbax's own handler reads the arrays that this one writes.

    async def metadata(self, infos: Any) -> Any:
        raise io.UnsupportedOperation("streamed arrays are read by Orbax's own handler")

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        raise io.UnsupportedOperation("streamed arrays are read by Orbax's own handler")


class _Pending:
    """Writes in the background, bounded by their total size."""

    def __init__(self) -> None:
        self._writes: collections.deque[tuple[int, Any]] = collections.deque()

    def add(self, size: int, write: Any) -> None:
        self._writes.append((size, write))

    def drain(self) -> None:
        """Waits for all writes, failed ones too: files removed after a failure must not reappear."""
        for _, write in self._writes:
            with contextlib.suppress(Exception):
                write.result()
        self._writes.clear()

    def wait(self, most: int) -> None:
        """Waits for the oldest writes until at most `most` bytes are pending."""
        while sum(size for size, _ in self._writes) > most or (most == 0 and self._writes):
            self._writes.popleft()[1].result()


def _write(store: Any, value: Streamed, pending: _Pending) -> int:
    """Writes all pieces; returns the checksum of the array (`digests.partial_sum`)."""
    total = 0
    for index, piece in value.pieces():
        piece = np.ascontiguousarray(piece, value.dtype)
        total += partial_sum(piece, (index or 0) * piece.size)
        pending.wait(_PENDING_BYTES)
        target = store if index is None else store[index]
        pending.add(piece.nbytes, target.write(piece, can_reference_source_data_indefinitely=True))
    return total % 2**32


def _write_spec(info: Any, value: Streamed) -> Any:
    """The tensorstore spec with which Orbax opens an array in this process's part of the store.

    Not compressed: compression saves a twelfth of float32 weights and makes writing several times slower.
    """
    metadata: dict[str, Any] = {
        "shape": value.shape,
        "chunks": [max(size, 1) for size in value.chunk],
        "compressor": None,
    }
    kvstore = {
        "driver": "ocdbt",
        "base": {"driver": "file", "path": f"{Path(info.parent_dir) / 'ocdbt.process_0'}/"},
        "path": info.name,
        "target_data_file_size": _DATA_FILE_BYTES,
        "config": {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 10**8, "compression": {"id": "zstd"}},
    }
    return ts.Spec(
        {
            "driver": "zarr",
            "dtype": value.dtype.name,
            "kvstore": kvstore,
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
    )


@dataclass(frozen=True)
class StoredParams:
    """The parameters of a checkpoint, read piece by piece.

    Attributes:
      folder: of the part, e.g. `checkpoints/100/params`; shapes: of the arrays by dotted path.
    """

    folder: Path
    shapes: Mapping[str, jax.ShapeDtypeStruct]

    def pieces(self, path: str, *, by_layer: bool) -> Iterator[np.ndarray]:
        """The layers of an array one by one, or the whole array; reads each chunk of the file once.

        Raises:
          Unusable: an array that is missing, damaged, or of another shape or type.
        """
        like = self.shapes[path]
        try:
            store = ts.open(self._spec(path), open=True).result()
            if store.shape != like.shape or store.dtype.numpy_dtype != like.dtype:
                raise Unusable(f"is of another model: {path} is {store.dtype.name} {store.shape}")
            if not by_layer:
                yield store.read().result()
            elif (store.chunk_layout.read_chunk.shape or (0,))[0] == 1:
                for layer in range(like.shape[0]):
                    yield store[layer].read().result()
            else:
                yield from store.read().result()
        except Unusable:
            raise
        except ValueError as error:  # raised by tensorstore
            raise Unusable(f"is damaged or of another model: {path} cannot be read") from error

    def _spec(self, path: str) -> Any:
        # One database of arrays, or files that every host wrote by itself (`array_writing`).
        if not (self.folder / "manifest.ocdbt").exists():
            return ts.Spec({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{self.folder / path}/"}})
        kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{self.folder}/"}, "path": path}
        return ts.Spec({"driver": "zarr", "kvstore": kvstore})
