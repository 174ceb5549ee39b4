"""Latents written by `starflow encode`: ArrayRecord files and a header, with text states of the captions."""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.choices import LatentDtype, choices
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.core.regular_files import parse_json, read_text
from starflow_jax.data.decoding.bad_examples import BadExample, error_reason
from starflow_jax.data.sources.base import CAPTION, Source, lines_digest
from starflow_jax.data.sources.lazy_reader import LazyReader
from starflow_jax.data.sources.mixture import Component, Mixture
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import named_entry

FORMAT = "starflow latents 1"
HEADER_FILE = "header.json"
_HEAD = struct.Struct("<iII")
# Largest size of the text states of the empty caption in a header.
_MAX_EMPTY = 2**22


@dataclass(frozen=True, eq=False)
class Records:
    """The layout of the records of a folder.

    Attributes:
      dtype: dtype of stored latents and text states; num_classes: number of classes of the labels.
      length, dim: L and D of text states, 0 without any.
      empty: text states of the empty caption, float32 [L, D].
    """

    dtype: str
    num_classes: int
    length: int = 0
    dim: int = 0
    empty: np.ndarray | None = None

    def pack(self, latent: np.ndarray, label: int, states: np.ndarray | None, caption: str) -> bytes:
        """One example as bytes, without the zero rows at the end of `states` [L, D]."""
        rows = 0
        text = b""
        if states is not None:
            used = np.flatnonzero(np.any(states != 0, axis=1))
            rows = int(used[-1]) + 1 if len(used) else 0
            text = np.ascontiguousarray(states[:rows], self.dtype).tobytes()
        caption_bytes = caption.encode("utf-8")
        pixels = np.ascontiguousarray(latent, self.dtype).tobytes()
        return _HEAD.pack(label, rows, len(caption_bytes)) + pixels + text + caption_bytes

    def unpack(self, data: bytes, shape: tuple[int, ...]) -> tuple[np.ndarray, int, np.ndarray | None, str]:
        """The latent, float32 of `shape`; label; text states, float32 [L, D] or None; caption.

        Raises:
          ValueError: the bytes are not the output of `pack`.
        """
        dtype = np.dtype(self.dtype)
        check(len(data) >= _HEAD.size, f"its record has {len(data)} bytes")
        label, rows, caption_size = _HEAD.unpack_from(data)
        pixels, text = int(np.prod(shape)) * dtype.itemsize, rows * self.dim * dtype.itemsize
        expected = _HEAD.size + pixels + text + caption_size
        check(len(data) == expected and rows <= self.length, f"its record has {len(data)} bytes and not {expected}")
        check(-1 <= label < max(self.num_classes, 1), f"its label is {label}")
        latent = np.frombuffer(data, dtype, pixels // dtype.itemsize, _HEAD.size).reshape(shape).astype(np.float32)
        check(bool(np.isfinite(latent).all()), "its latent is not finite")
        states = None
        if self.length:
            states = np.zeros((self.length, self.dim), np.float32)
            states[:rows] = np.frombuffer(data, dtype, rows * self.dim, _HEAD.size + pixels).reshape(rows, self.dim)
        return latent, label, states, data[expected - caption_size :].decode("utf-8", "replace")


@dataclass(frozen=True, eq=False)
class LatentSource:
    """`image` float32 [H, W, C] or [T, H, W, C], `label` int32 [], and with captions `text_states` float32 [L, D].

    Attributes:
      name: name in logs; files: ArrayRecord files; reader: opens them; length: number of examples; records: layout.
      shape: shape of a stored latent; frames: the number T of its frames that are read, None for all (or an image).
      drop_first: probability that `draw` begins at the second stored frame; then T + 1 frames must be stored.
      text_drop: probability that `draw` replaces the text states by those of the empty caption.
      classes: names of the classes, empty where the header has none.
    """

    name: str
    files: tuple[str, ...]
    reader: LazyReader[Any]
    length: int
    records: Records
    shape: tuple[int, ...]
    frames: int | None = None
    drop_first: float = 0.0
    text_drop: float = 0.0
    classes: tuple[str, ...] = ()

    @property
    def levels(self) -> int:
        """0: the values are continuous."""
        return 0

    @property
    def num_classes(self) -> int:
        """Number of classes of the labels."""
        return self.records.num_classes

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return self.shape if self.frames is None else (self.frames, *self.shape[1:])

    def __len__(self) -> int:
        return self.length

    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shapes and dtypes of an example."""
        arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "image": (self.example_shape, np.dtype(np.float32)),
            "label": ((), np.dtype(np.int32)),
        }
        if self.records.length:
            arrays["text_states"] = ((self.records.length, self.records.dim), np.dtype(np.float32))
        return arrays

    def digest(self) -> str:
        """Digest of the names and sizes of the files."""
        return lines_digest(f"{Path(file).name} {Path(file).stat().st_size}" for file in self.files)

    def with_frames(self, frames: int) -> LatentSource:
        """The same source with clips of at most `frames` frames; still images are unchanged."""
        return self if self.frames is None else dataclasses.replace(self, frames=min(frames, self.frames or frames))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example for evaluation."""
        return self._example(index, extended=False, dropped=False)

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A randomly augmented training example."""
        late, dropped = rng.random(2)
        return self._example(index, extended=bool(late < self.drop_first), dropped=bool(dropped < self.text_drop))

    def _example(self, index: int, *, extended: bool, dropped: bool) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"example must be 0 to {self.length - 1}, got {index}")
        try:
            latent, label, states, caption = self.records.unpack(bytes(self.reader()[index]), self.shape)
        except Exception as error:  # the library raises several kinds of errors on damaged files
            raise BadExample(f"{self.name}[{index}]", error_reason(error)) from error
        if self.frames is not None:
            latent = latent[int(extended) : int(extended) + self.frames]
        example: dict[str, Any] = {"image": latent, "label": np.int32(label)}
        if states is None:
            return example
        empty = self.records.empty
        if dropped:
            states, caption = np.zeros_like(states) if empty is None else empty, ""
        return {**example, "text_states": states, CAPTION: caption}


def open_latents(folder: Path, frames: int = 0, drop_first: float = 0.0, text_drop: float = 0.0) -> Source:
    """The latents of a folder; a mixture where they have several shapes.

    Args:
      folder: output of `starflow encode`.
      frames: frames of a clip, at most those stored; 0 for still images.
      drop_first, text_drop: see `LatentSource`.

    Raises:
      ValueError: the header is missing or damaged, the files do not match it, or the clips are too short.
    """
    header = read_header(folder)
    try:
        text = header["text"]
        records = Records(str(header["dtype"]), int(header["num_classes"]))
        classes = tuple(map(str, header.get("class_names", [])))
        check(
            records.dtype in choices(LatentDtype),
            f"dtype must be one of {', '.join(choices(LatentDtype))}, got {records.dtype!r}",
        )
        if text is not None:
            length, dim = int(text["length"]), int(text["dim"])
            check(
                0 < length * dim <= _MAX_EMPTY, f"text states must have 1 to {_MAX_EMPTY} values, got {length} x {dim}"
            )
            empty = np.zeros((length, dim), np.float32)
            rows = np.asarray(text["empty"], np.float32).reshape(-1, dim)
            empty[: len(rows)] = rows
            records = dataclasses.replace(records, length=length, dim=dim, empty=empty)
        buckets = [
            (
                str(entry["bucket"]),
                tuple(map(int, entry["shape"])),
                tuple(map(str, entry["files"])),
                int(entry["count"]),
                float(entry.get("weight", entry["count"])),
                None if entry.get("batch_size") is None else int(entry["batch_size"]),
            )
            for entry in header["buckets"]
        ]
        check(len(buckets) > 0, "it names no files")
        for _, shape, files, _, weight, size in buckets:
            check(0 < weight < math.inf, f"a weight must be a number above 0, got {weight}")
            check(size is None or size > 0, f"a batch_size must be above 0, got {size}")
            check(len(shape) in (3, 4) and min(shape) > 0, f"a shape must be [T,] H, W, C, got {list(shape)}")
            check(all(Path(file).name == file for file in files), "its files must be names in this folder")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"latents {folder} have a header that cannot be read: {error_reason(error)}") from error
    components = []
    clips = any(len(shape) == 4 for _, shape, *_ in buckets)
    for bucket, shape, files, count, weight, batch_size in buckets:
        paths = tuple(str(folder / file) for file in files)
        reader = LazyReader(functools.partial(_reader, paths))
        _check_files(folder, paths, reader, count)
        # Images in a mixture with clips are read whole.
        num_frames = None if clips and len(shape) == 3 else _check_frames(folder, shape, frames, drop_first)
        name = f"{folder.name} {bucket}"
        source = LatentSource(name, paths, reader, count, records, shape, num_frames, drop_first, text_drop, classes)
        components.append(Component(source, weight, batch_size))
    return components[0].source if len(components) == 1 else Mixture(folder.name, tuple(components))


def read_header(folder: Path) -> dict[str, Any]:
    """Reads the header of a folder of latents.

    Raises:
      ValueError: there is no header, or it is of another format.
    """
    path = folder / HEADER_FILE
    check(path.is_file(), f"latents {folder} have no {HEADER_FILE}: starflow encode writes one")
    try:
        header = parse_json(read_text(path))
        is_known = header["format"] == FORMAT
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"latents {folder} have a header that cannot be read: {error_reason(error)}") from error
    check(is_known, f"latents {folder} must be of format {FORMAT!r}, got {header['format']!r}")
    return header


def _check_files(folder: Path, paths: tuple[str, ...], reader: LazyReader[Any], count: int) -> None:
    for path in paths:
        check(Path(path).is_file(), f"latents {folder} must contain {Path(path).name}, and do not")
    try:
        length = len(reader())
    except Exception as error:  # the library raises several kinds of errors on damaged files
        raise ValueError(f"latents {folder} cannot be read: {error_reason(error)}") from error
    check(length == count > 0, f"latents {folder} must contain the {count} examples of their header, got {length}")


def _check_frames(folder: Path, shape: tuple[int, ...], frames: int, drop_first: float) -> int | None:
    """The frames to read, None for still images. Raises ValueError where fewer are stored."""
    stored = shape[0] if len(shape) == 4 else 0
    needed = frames + (drop_first > 0)
    check(
        (frames > 0) == (stored > 0) and needed <= stored,
        f"frames must be at most the {stored} of the latents in {folder}"
        f"{', less one for drop_first' if drop_first else ''}, and 0 for still images, got {frames}",
    )
    return frames if stored else None


def _reader(files: tuple[str, ...]) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(list(files))


@SOURCES.register(
    "latents",
    path=True,
    frames="either",
    captions="text",
    fields=("drop_first", "crop", "flip", "background", "aspect_ratios", "index"),
    latents=True,
)
def open_latent_folder(config: SourceConfig, request: SourceRequest) -> Source:
    """The latents in the folder of the split; the training split may be `path` itself."""
    path = Path(config.path or "")
    folder = named_entry(path, request.split, "", Path.is_dir) or path
    check(request.training or folder != path, f"latents {path} must contain a folder {request.split}")
    drop_first = config.drop_first if request.training else 0.0
    return open_latents(folder, config.frames, drop_first, request.label_drop)
