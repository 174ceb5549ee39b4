"""Precomputes latents and text states of a source, as files for training."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.choices import LatentDtype, choices
from starflow_jax.core.config.checks import check, check_choice
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.data import Source
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped
from starflow_jax.data.sources.base import CAPTION
from starflow_jax.data.sources.latents import FORMAT, HEADER_FILE, Records
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.models.autoencoders import Autoencoder, TiledWan, WanAutoencoder, fit_patch_pca, keep_autoencoder
from starflow_jax.models.autoencoders.decoding import encode_frames
from starflow_jax.models.autoencoders.protocol import Params
from starflow_jax.training.distributed.agreement import gather_texts
from starflow_jax.training.distributed.shared_folder import replacing_folder_together
from starflow_jax.training.step.frozen_text import load_text

SHARD = 10_000


class Encoded(NamedTuple):
    """Number of examples by the shape of their latents, and the examples that were skipped."""

    counts: dict[tuple[int, ...], int]
    skipped: Skipped


def fit_to(source: Source, patch: int, channels: int, count: int) -> tuple[Autoencoder, Mapping[str, np.ndarray]]:
    """Fits a patch PCA to the first `count` readable images of a source.

    Raises:
      ValueError: there are too few.
    """
    sources = [component.source for component in components_of(source)]
    examples = itertools.chain.from_iterable(_readable(part, Skipped(), range(len(part))) for part in sources)
    images = (_scaled(example["image"], source.levels) for example in itertools.islice(examples, count))
    return fit_patch_pca(images, patch, channels)


def encode_source(
    config: ExperimentConfig,
    source: Source,
    autoencoder: Autoencoder,
    params: Mapping[str, np.ndarray],
    out: Path,
    *,
    dtype: str = "float16",
    limit: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Encoded:
    """Writes the latents of every example, with text states where the experiment reads captions.

    Examples are encoded as for evaluation: centre crop, not mirrored, each with one of its captions. With several
    processes, each encodes its share into its own files in one folder. The header stores the weights and batch sizes of
    a mixture.

    Args:
      config: the experiment, which defines the captions and the vocabulary or text encoder.
      source: images or clips; see `pixel_source`.
      autoencoder, params: the autoencoder, which is stored with the latents.
      out: new or empty folder, written atomically.
      dtype: of the stored values; limit: maximum number of examples, unreadable ones included.
      batch_size: examples encoded at a time; progress: called with the number of examples written by this process.

    Raises:
      ValueError: no example can be encoded, or most cannot be read.
    """
    check_choice("dtype", dtype, choices(LatentDtype))
    specs = [example_spec(part.source) for part in components_of(source)]
    text = load_text(config) if all("text" in spec for spec in specs) else None
    length_of_text, dim = (0, 0) if text is None else (text.encoder.length, text.encoder.dim)
    empty: np.ndarray | None = None
    known: dict[bytes, np.ndarray] = {}  # states of the empty caption alone: all others would take too much memory
    if text is not None:
        text = text.over(None)
        empty, known = text.states_of(text.empty[None])
    records = Records(dtype, source.num_classes, length_of_text, dim)
    encode = _encoder(autoencoder)
    mixture = config.data.source == "mixture"
    skipped, parts, begun = Skipped(), [], 0
    with replacing_folder_together(out) as folder:
        for index, component in enumerate(components_of(source)):
            length = len(component.source) if limit is None else min(len(component.source), limit - begun)
            begun += length
            examples = _readable(component.source, skipped, _local_share(length))
            count, shape = 0, ()
            with _Shards(folder, _stem(index)) as shards:
                while batch := list(itertools.islice(examples, batch_size)):
                    pixels = np.stack([_scaled(example["image"], source.levels) for example in batch])
                    padded = np.concatenate([pixels, np.repeat(pixels[:1], batch_size - len(batch), axis=0)])
                    latents = np.asarray(encode(params, padded))[: len(batch)]
                    check(bool(np.isfinite(latents).all()), "the autoencoder must give finite latents, and did not")
                    states: list[np.ndarray | None] = [None] * len(batch)
                    if text is not None:
                        states = list(text.states_of(np.stack([example["text"] for example in batch]), known)[0])
                    for example, latent, state in zip(batch, latents, states, strict=True):
                        caption = str(example.get(CAPTION, ""))
                        shards.write(records.pack(latent, int(example["label"]), state, caption))
                    shape = latents.shape[1:]
                    count += len(batch)
                    if progress is not None:
                        progress(len(batch))
            parts.append(Part(shape, count, tuple(shards.files)))
        parts, skipped = _gather(parts, skipped)
        written = sum(part.examples for part in parts)
        check(written > 0, f"{source.name} must hold an example that can be encoded, got none")
        for part in parts:
            missing = [name for name in part.files if not (folder / name).is_file()]
            check(not missing, f"{out} must be a folder that all processes share, but {missing[:1]} is not in it")
        header = {
            "format": FORMAT,
            "source": source.name,
            "count": written,
            "levels": 0,
            "dtype": dtype,
            "scale": 1.0,
            "stride": autoencoder.stride,
            "num_classes": source.num_classes,
            "text": None if empty is None else {"length": length_of_text, "dim": dim, "empty": _rows(empty[0])},
            "skipped": skipped.bad,
            "buckets": [
                part.bucket() | ({"weight": one.weight, "batch_size": one.batch_size} if mixture else {})
                for part, one in zip(parts, components_of(source), strict=True)
                if part.examples
            ],
        }
        if jax.process_index() == 0:
            keep_autoencoder(folder, autoencoder, params)
            write_text(folder / HEADER_FILE, json.dumps(header, indent=2) + "\n")
    counts: dict[tuple[int, ...], int] = {}
    for part in parts:
        if part.examples:
            counts[part.shape] = counts.get(part.shape, 0) + part.examples
    return Encoded(counts, skipped)


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
