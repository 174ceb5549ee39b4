"""Latents and text states of a source, computed once and written to files that training reads."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from starflow_jax.autoencoders import Autoencoder, fit_patch_pca, keep_autoencoder
from starflow_jax.config.checks import check
from starflow_jax.config.experiment import ExperimentConfig
from starflow_jax.data import Source
from starflow_jax.data.draw import CAPTION
from starflow_jax.data.latents import DTYPES, FORMAT, HEADER_FILE, Records
from starflow_jax.data.mixture import components_of, example_spec
from starflow_jax.data.opening import Split, open_source
from starflow_jax.data.skipped import BadExample, Skipped
from starflow_jax.files import replacing_folder, write_text
from starflow_jax.training.inputs import word_encoder

SHARD = 10_000


class Encoded(NamedTuple):
    """What was written: examples by the shape of their latents, and what was skipped."""

    counts: dict[tuple[int, ...], int]
    skipped: Skipped


def pixel_source(
    config: ExperimentConfig, split: Split, stride: int, pixel_channels: int, frame_stride: int = 1
) -> Source:
    """The pictures or clips whose latents suit `config.flow`: `stride` times as many rows and columns as it takes.

    Raises:
      ValueError: see `open_source`; data that are latents already, or that are of their own size and do not fit.
    """
    kinds = {part.source for part in (config.data.mixture or (config.data,))}
    check("latents" not in kinds, "data.source must be pictures or videos to be encoded, got 'latents'")
    height, width = config.flow.image_shape
    pixels = dataclasses.replace(config.flow, image_size=(height * stride, width * stride), channels=pixel_channels)
    multiple = stride * config.flow.patch_size
    parts = tuple(dataclasses.replace(part, multiple=part.multiple or multiple) for part in config.data.mixture)
    data = dataclasses.replace(config.data, mixture=parts, multiple=config.data.multiple or multiple)
    source = open_source(data, split, flow=pixels, text=config.text)
    check_pixels(source, stride, pixel_channels, frame_stride)
    return source


def check_pixels(source: Source, stride: int, pixel_channels: int, frame_stride: int = 1) -> None:
    """Raises ValueError unless an autoencoder of those strides and channels can encode all of `source`."""
    check(source.levels > 0, f"{source.name} must hold pixels to be encoded, got latents")
    for component in components_of(source):
        shape = example_spec(component.source)["image"][0]
        check(
            shape[-1] == pixel_channels and not any(side % stride for side in shape[-3:-1]),
            f"pictures of {component.source.name} must have {pixel_channels} channels and sides that are multiples of "
            f"{stride} for this autoencoder, got {list(shape)}",
        )
        check(
            len(shape) == 3 or (shape[0] - 1) % frame_stride == 0,
            f"clips of {component.source.name} must have 1 plus a multiple of {frame_stride} frames for this "
            f"autoencoder, got {shape[0]}",
        )


def fit_to(source: Source, patch: int, channels: int, count: int) -> tuple[Autoencoder, Mapping[str, np.ndarray]]:
    """The patch PCA of the first `count` pictures of a source that can be read.

    Raises:
      ValueError: too few of them.
    """
    examples = itertools.chain.from_iterable(_readable(part.source, Skipped()) for part in components_of(source))
    pictures = (_scaled(example["image"], source.levels) for example in itertools.islice(examples, count))
    return fit_patch_pca(pictures, patch, channels)


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

    Examples are encoded as they are scored: cropped about the centre, not mirrored, each with one of its captions.

    Args:
      config: whose captions and vocabulary are used.
      source: pixels; see `pixel_source`.
      autoencoder, params: what encodes them; kept with the latents.
      out: folder that does not exist, or is empty; it appears whole or not at all.
      dtype: of the numbers in the files; limit: most examples; batch_size: examples encoded at a time.
      progress: called with the number of examples written.

    Raises:
      ValueError: nothing that could be encoded, or most of it bad.
    """
    check(dtype in DTYPES, f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    specs = [example_spec(part.source) for part in components_of(source)]
    captioned = all("text" in spec for spec in specs) and config.text is not None
    encoder = word_encoder(config) if captioned else None
    length, dim = (encoder.length, len(encoder.vocabulary)) if encoder else (0, 0)
    records = Records(dtype, source.num_classes, length, dim)
    encode = jax.jit(autoencoder.encode)
    skipped = Skipped()
    counts: dict[tuple[int, ...], int] = {}
    files: dict[tuple[int, ...], list[str]] = {}
    with replacing_folder(out) as folder:
        written = 0
        for number, component in enumerate(components_of(source)):
            left = None if limit is None else limit - written
            examples = itertools.islice(_readable(component.source, skipped), left)
            with _Shards(folder, f"latents-{number:03d}") as shards:
                while batch := list(itertools.islice(examples, batch_size)):
                    pixels = np.stack([_scaled(example["image"], source.levels) for example in batch])
                    filled = np.concatenate([pixels, np.repeat(pixels[:1], batch_size - len(batch), axis=0)])
                    latents = np.asarray(encode(params, filled))[: len(batch)]
                    check(bool(np.isfinite(latents).all()), "the autoencoder must give finite latents, and did not")
                    states: list[np.ndarray | None] = [None] * len(batch)
                    if encoder is not None:
                        states = list(np.asarray(encoder.states(np.stack([example["text"] for example in batch]))))
                    for example, latent, state in zip(batch, latents, states, strict=True):
                        caption = str(example.get(CAPTION, ""))
                        shards.write(records.pack(latent, int(example["label"]), state, caption))
                    shape = latents.shape[1:]
                    counts[shape] = counts.get(shape, 0) + len(batch)
                    written += len(batch)
                    if progress is not None:
                        progress(len(batch))
            if shards.files:
                files.setdefault(shape, []).extend(shards.files)
        check(written > 0, f"{source.name} must hold an example that can be encoded, got none")
        text = {"length": length, "dim": dim, "empty": [[0.0] * dim]} if encoder else None
        header = {
            "format": FORMAT,
            "source": source.name,
            "count": written,
            "levels": 0,
            "dtype": dtype,
            "scale": 1.0,
            "stride": autoencoder.stride,
            "num_classes": source.num_classes,
            "text": text,
            "skipped": skipped.bad,
            "buckets": [
                {"bucket": "x".join(map(str, shape[:-1])), "shape": shape, "count": counts[shape], "files": names}
                for shape, names in files.items()
            ],
        }
        keep_autoencoder(folder, autoencoder, params)
        write_text(folder / HEADER_FILE, json.dumps(header, indent=2) + "\n")
    return Encoded(counts, skipped)


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


def _readable(source: Source, skipped: Skipped) -> Iterator[Mapping[str, Any]]:
    """Examples in order, without the bad ones."""
    for index in range(len(source)):
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
