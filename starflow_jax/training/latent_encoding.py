"""Precomputes latents and text states of a source, as files for training."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.config.checks import check
from starflow_jax.data import Source
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped
from starflow_jax.data.pipeline.caption_account import caption_account
from starflow_jax.data.pipeline.opening_notes import class_names, opening_notes
from starflow_jax.data.sources.base import CAPTION
from starflow_jax.data.sources.latents import FORMAT, HEADER_FILE, Records
from starflow_jax.data.sources.mixture import Component, components_of, example_spec
from starflow_jax.models.autoencoders import (
    Autoencoder,
    Identity,
    Tiled,
    TiledWan,
    WanAutoencoder,
    fit_patch_pca,
    keep_autoencoder,
    load_autoencoder,
)
from starflow_jax.models.autoencoders.decoding import encode_frames
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.models.text.states import Known
from starflow_jax.training.distributed.agreement import gather_texts
from starflow_jax.training.distributed.shared_folder import replacing_folder_together
from starflow_jax.training.encode_request import EncodeRequest
from starflow_jax.training.step.frozen_text import FrozenText, load_text
from starflow_jax.training.step.pixel_source import pixel_source

SHARD = 10_000


class Encoded(NamedTuple):
    """Number of examples by the shape of their latents, and the examples that were skipped."""

    counts: dict[tuple[int, ...], int]
    skipped: Skipped


@dataclasses.dataclass(frozen=True, eq=False)
class Encoding:
    """The data and the frozen networks of a request, opened and checked.

    Attributes:
      request: what is encoded.
      source: images or clips; see `pixel_source`.
      autoencoder, params: the autoencoder, applied in tiles where the request says so.
      text: the text encoder, its parameters on a device; None where not every source has captions.
      empty: states float32 [1, L, D] of the empty caption; None without a text encoder.
      known: the states of the empty caption by its token ids. All others would take too much memory.
      notes: sentences about captions, and about what the data contain and is not read.
    """

    request: EncodeRequest
    source: Source
    autoencoder: Autoencoder
    params: Params
    text: FrozenText | None
    empty: np.ndarray | None
    known: Known
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Number of examples to encode, unreadable ones included."""
        limit = self.request.limit
        return len(self.source) if limit is None else min(len(self.source), limit)

    @property
    def records(self) -> Records:
        """The format of the stored examples."""
        length, dim = (0, 0) if self.text is None else (self.text.encoder.length, self.text.encoder.dim)
        return Records(self.request.dtype, self.source.num_classes, length, dim)


def fit_to(source: Source, patch: int, channels: int, count: int) -> tuple[Autoencoder, Mapping[str, np.ndarray]]:
    """Fits a patch PCA to the first `count` readable images of a source.

    Raises:
      ValueError: there are too few.
    """
    sources = [component.source for component in components_of(source)]
    examples = itertools.chain.from_iterable(_readable(part, Skipped(), range(len(part))) for part in sources)
    images = (_scaled(example["image"], source.levels) for example in itertools.islice(examples, count))
    return fit_patch_pca(images, patch, channels)


def open_encoding(request: EncodeRequest) -> Encoding:
    """Opens the data, reads or fits the autoencoder, and reads the text encoder.

    Raises:
      ValueError: data or networks that cannot be read, or that do not fit the flow; data without captions for a flow
        that reads text.
    """
    source, autoencoder, params = _source_and_autoencoder(request)
    channels = request.config.flow.channels
    check(
        autoencoder.channels == channels,
        f"flow.channels must be the {autoencoder.channels} channels of the latents, got {channels}",
    )
    if request.tile is not None:
        tile, overlap = request.tile, request.tile // 4
        if isinstance(autoencoder, WanAutoencoder):
            autoencoder = TiledWan(autoencoder, tile, overlap)
        else:
            autoencoder = Tiled(autoencoder, tile, overlap)
    specs = [example_spec(part.source) for part in components_of(source)]
    text = load_text(request.config) if all("text" in spec for spec in specs) else None
    notes = tuple(opening_notes(source))
    if text is None:
        return Encoding(request, source, autoencoder, params, None, None, {}, notes)
    if (account := caption_account(source)) is not None:
        account.check_any()
        notes = (account.sentence(), *notes)
    text = text.over(None)
    empty, known = text.states_of(text.empty[None])
    return Encoding(request, source, autoencoder, params, text, empty, known, notes)


def _source_and_autoencoder(request: EncodeRequest) -> tuple[Source, Autoencoder, Params]:
    config = request.config
    if request.fit_patch_pca is not None:
        patch, channels = request.fit_patch_pca
        source = pixel_source(config, request.split, patch, 1 if config.flow.channels == 1 else 3)
        fitted, values = fit_to(source, patch, channels, request.fit_images)
        return source, fitted, dict(values)
    path = request.autoencoder or config.data.autoencoder
    autoencoder: Autoencoder = Identity(config.flow.channels)
    params: Params = {}
    if path is not None:
        autoencoder, params = load_autoencoder(Path(path), request.compute or config.data.autoencoder_dtype)
    strides = (autoencoder.stride, autoencoder.pixel_channels, autoencoder.frame_stride)
    return pixel_source(config, request.split, *strides), autoencoder, params


def encode_data(
    request: EncodeRequest, *, encoding: Encoding | None = None, progress: Callable[[int], None] | None = None
) -> Encoded:
    """Writes the latents of every example, with text states where the experiment reads captions.

    Examples are encoded as for evaluation: centre crop, not mirrored, each with one of its captions. With several
    processes, each encodes its share into its own files in one folder. The header stores the weights and batch sizes of
    a mixture.

    Args:
      request: the request.
      encoding: its data and networks, where `open_encoding` has opened them already.
      progress: called with the number of examples written by this process.

    Raises:
      ValueError: see `open_encoding`; no example can be encoded, or most cannot be read.
    """
    encoding = open_encoding(request) if encoding is None else encoding
    encode = _encoder(encoding.autoencoder)
    components = components_of(encoding.source)
    skipped, parts, begin = Skipped(), [], 0
    with replacing_folder_together(request.out) as folder:
        for index, component in enumerate(components):
            length = len(component.source)
            length = length if request.limit is None else min(length, request.limit - begin)
            begin += length
            examples = _readable(component.source, skipped, _local_share(length))
            count, shape = 0, tuple[int, ...]()
            with _Shards(folder, _stem(index)) as shards:
                while batch := list(itertools.islice(examples, request.batch_size)):
                    shape = _write_batch(encoding, encode, batch, shards)
                    count += len(batch)
                    if progress is not None:
                        progress(len(batch))
            parts.append(Part(shape, count, tuple(shards.files)))
        parts, skipped = _gather(parts, skipped)
        check(
            any(part.examples for part in parts),
            f"{encoding.source.name} must contain an example that can be encoded, got none",
        )
        for part in parts:
            missing = [name for name in part.files if not (folder / name).is_file()]
            check(
                not missing,
                f"{request.out} must be a folder that all processes share, but {missing[:1]} is not in it",
            )
        if jax.process_index() == 0:
            keep_autoencoder(folder, encoding.autoencoder, encoding.params)
            header = _header(encoding, parts, components, skipped)
            write_text(folder / HEADER_FILE, json.dumps(header, indent=2) + "\n")
    counts: dict[tuple[int, ...], int] = {}
    for part in parts:
        if part.examples:
            counts[part.shape] = counts.get(part.shape, 0) + part.examples
    return Encoded(counts, skipped)


def _write_batch(
    encoding: Encoding,
    encode: Callable[[Params, np.ndarray], np.ndarray | jax.Array],
    batch: Sequence[Mapping[str, Any]],
    shards: _Shards,
) -> tuple[int, ...]:
    """Encodes and writes examples of one shape, padded to the batch size; returns the shape of a latent."""
    pixels = np.stack([_scaled(example["image"], encoding.source.levels) for example in batch])
    padding = np.repeat(pixels[:1], encoding.request.batch_size - len(batch), axis=0)
    latents = np.asarray(encode(encoding.params, np.concatenate([pixels, padding])))[: len(batch)]
    check(bool(np.isfinite(latents).all()), "the autoencoder must give finite latents, and did not")
    states: list[np.ndarray | None] = [None] * len(batch)
    if encoding.text is not None:
        ids = np.stack([example["text"] for example in batch])
        states = list(encoding.text.states_of(ids, encoding.known)[0])
    records = encoding.records
    for example, latent, state in zip(batch, latents, states, strict=True):
        shards.write(records.pack(latent, int(example["label"]), state, str(example.get(CAPTION, ""))))
    return latents.shape[1:]


def _header(
    encoding: Encoding, parts: Sequence[Part], components: Sequence[Component], skipped: Skipped
) -> dict[str, Any]:
    """The content of the header file."""
    source, empty, records = encoding.source, encoding.empty, encoding.records
    mixture = bool(encoding.request.config.data.mixture)
    return {
        "format": FORMAT,
        "source": source.name,
        "count": sum(part.examples for part in parts),
        "levels": 0,
        "dtype": encoding.request.dtype,
        "scale": 1.0,
        "stride": encoding.autoencoder.stride,
        "class_names": class_names(encoding.source),
        "num_classes": source.num_classes,
        "text": None if empty is None else {"length": records.length, "dim": records.dim, "empty": _rows(empty[0])},
        "skipped": skipped.bad,
        "buckets": [
            part.bucket() | ({"weight": one.weight, "batch_size": one.batch_size} if mixture else {})
            for part, one in zip(parts, components, strict=True)
            if part.examples
        ],
    }


def _encoder(autoencoder: Autoencoder) -> Callable[[Params, np.ndarray], np.ndarray | jax.Array]:
    """A function that encodes a batch; a video autoencoder encodes clips one by one in chunks, to limit memory."""
    if not isinstance(autoencoder, WanAutoencoder | TiledWan):
        return jax.jit(autoencoder.encode)

    def encode(params: Params, pixels: np.ndarray) -> np.ndarray:
        if pixels.ndim == 4:
            pixels = pixels[:, None]
            return np.stack([encode_frames(autoencoder, params, clip)[0] for clip in pixels])
        return np.stack([encode_frames(autoencoder, params, clip) for clip in pixels])

    return encode


class Part(NamedTuple):
    """Latents of one component of a source: their shape, number and files."""

    shape: tuple[int, ...]
    examples: int
    files: tuple[str, ...]

    def bucket(self) -> dict[str, Any]:
        """The entry of the header."""
        bucket = "x".join(map(str, self.shape[:-1]))
        return {"bucket": bucket, "shape": self.shape, "count": self.examples, "files": self.files}


def _local_share(length: int) -> range:
    """The indices of this process: contiguous parts of `length` examples in the order of processes."""
    process, count = jax.process_index(), jax.process_count()
    return range(process * length // count, (process + 1) * length // count)


def _stem(component: int) -> str:
    """First part of the file names of this process."""
    process = f"-{jax.process_index():04d}" if jax.process_count() > 1 else ""
    return f"latents-{component:03d}{process}"


def _gather(parts: Sequence[Part], skipped: Skipped) -> tuple[list[Part], Skipped]:
    """The parts and skipped examples of all processes, by component."""
    texts = gather_texts(json.dumps([parts, skipped.tried, skipped.bad, skipped.reasons]))
    joined = [Part((), 0, ())] * len(parts)
    together = Skipped()
    for process_parts, tried, bad, reasons in map(json.loads, texts):
        together.merge(Skipped(tried, bad, reasons))
        for component, (shape, count, files) in enumerate(process_parts):
            old = joined[component]
            joined[component] = Part(old.shape or tuple(shape), old.examples + count, (*old.files, *files))
    return joined, together


def _rows(states: np.ndarray) -> list[list[float]]:
    """Rows of states [L, D] up to the last non-zero one, at least one."""
    used = np.flatnonzero(np.any(states != 0, axis=1))
    return states[: int(used[-1]) + 1 if len(used) else 1].tolist()


class _Shards:
    """ArrayRecord files of at most `SHARD` records each."""

    def __init__(self, folder: Path, stem: str):
        self.folder = folder
        self.stem = stem
        self.files: list[str] = []
        self._records = 0
        self._writer: Any = None

    def __enter__(self) -> _Shards:
        return self

    def write(self, record: bytes) -> None:
        """Adds one record."""
        from array_record.python.array_record_module import ArrayRecordWriter

        if self._records % SHARD == 0:
            self.__exit__()
            self.files.append(f"{self.stem}-{len(self.files):05d}.array_record")
            self._writer = ArrayRecordWriter(str(self.folder / self.files[-1]), "group_size:1")
        self._writer.write(record)
        self._records += 1

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


def _readable(source: Source, skipped: Skipped, indices: Iterable[int]) -> Iterator[Mapping[str, Any]]:
    """The readable examples at some indices."""
    for index in indices:
        try:
            example = source[index]
        except BadExample as error:
            skipped.add(1, [(error.name, error.reason)])
            continue
        skipped.add(1, [])
        yield example


def _scaled(image: np.ndarray, levels: int) -> np.ndarray:
    """Integer pixels to float32 in [-1, 1]."""
    return image.astype(np.float32) * np.float32(2.0 / (levels - 1)) - np.float32(1.0)
