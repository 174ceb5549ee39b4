"""Folders that `starflow prepare` writes: sharded ArrayRecord with captions, labels and sizes, read at random."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, error_reason
from starflow_jax.data.sources.array_record_files import ArrayRecordFiles
from starflow_jax.data.sources.image_collection import ExampleCaptions, Item
from starflow_jax.data.sources.image_files import open_image_files
from starflow_jax.data.sources.image_manifest import StoredShard, StoredSplit, read_manifest, read_sizes
from starflow_jax.data.sources.lazy_reader import LazyReader
from starflow_jax.data.sources.mixture import Mixture
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import shards_signature, split_names
from starflow_jax.data.sources.stored_image import StoredImage, unpack


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedImages:
    """The images of one split of a prepared folder.

    Attributes:
      folder: the folder; split: name of the split in it; stored: what the manifest says of it.
      num_classes: number of classes; classes: their names, empty where they have none.
      records: the records of all shards; notes: a sentence about examples that were skipped.
    """

    folder: Path
    split: str
    stored: StoredSplit
    num_classes: int
    classes: tuple[str, ...]
    records: LazyReader[ArrayRecordFiles]
    skipped: Skipped = dataclasses.field(default_factory=Skipped)
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path, split: str, stored: str | None = None) -> PreparedImages:
        """Opens one split of a folder; no record is read.

        Args:
          split: "train" or "test"; stored: its name in the folder, None for the first of the usual names.

        Raises:
          ValueError: the folder is not complete, or lacks the split or a shard, or a shard is not of its size.
        """
        manifest = read_manifest(folder)
        names = split_names(split) if stored is None else (stored,)
        name = next((name for name in names if name in manifest.splits), None)
        if name is None:
            raise ValueError(
                f"data folder {folder} must have a split {' or '.join(names)}, got {', '.join(manifest.splits)}; "
                "data.splits names another"
            )
        part = manifest.splits[name]
        shards = [shard for shard in part.shards if shard.count]
        for shard in shards:
            path = folder / shard.file
            size = path.stat().st_size if path.is_file() else None
            check(
                size == shard.bytes,
                f"data file {path} must have {shard.bytes} bytes, {'is missing' if size is None else f'got {size}'}",
            )
        paths = tuple(str(folder / shard.file) for shard in shards)
        reader = LazyReader(functools.partial(ArrayRecordFiles, paths, tuple(shard.count for shard in shards)))
        notes = (f"{part.skipped} examples could not be read when {folder} was prepared, and are not in it",)
        return cls(
            folder, name, part, manifest.num_classes, manifest.classes, reader, notes=notes if part.skipped else ()
        )

    @property
    def name(self) -> str:
        """Name in logs."""
        return self.folder.name

    def __len__(self) -> int:
        return self.stored.count

    def key(self, index: int) -> str:
        """Folder, split and index."""
        return f"{self.folder}:{self.split}[{index}]"

    def relative_key(self, index: int) -> str:
        """Split and index."""
        return f"{self.split}[{index}]"

    def read(self, index: int, captions: bool = False) -> Item:
        """The bytes of one image, with its class and captions."""
        image = self._image(index)
        return Item(io.BytesIO(image.data), image.label, image.captions.texts if captions else {})

    def captions(self, index: int) -> ExampleCaptions:
        """The captions of one image."""
        return self._image(index).captions

    def identity(self, index: int) -> str:
        """Split and index in it."""
        return f"{self.split}[{index}]"

    def digest(self, indices: np.ndarray | None) -> str:
        """Digest of the contents of all examples, or of those at `indices`; no record is read."""
        digest = hashlib.sha256(self.stored.fingerprint.encode())
        if indices is not None:
            digest.update(np.asarray(indices, "<i8").tobytes())
        return digest.hexdigest()[:32]

    def signature(self) -> str:
        """Digest of the contents, and of the names, sizes and modification times of the shards."""
        return f"{self.stored.fingerprint} {shards_signature([self.folder / shard.file for shard in self._shards()])}"

    def image_sizes(self) -> Iterator[np.ndarray]:
        """Rows and columns of the images, int32 [n, 2], shard by shard."""
        return (read_sizes(self.folder, shard) for shard in self._shards())

    def _shards(self) -> list[StoredShard]:
        return [shard for shard in self.stored.shards if shard.count]

    def _image(self, index: int) -> StoredImage:
        try:
            image = unpack(self.records()[index])
            check(image.label < max(self.num_classes, 1), f"its label is {image.label}")
        except Exception as error:  # the library raises several kinds of errors on damaged files
            raise BadExample(self.key(index), error_reason(error)) from error
        return image


@SOURCES.register("prepared", path=True, decoded=True, captions="text", fields=("splits",))
def open_prepared(config: SourceConfig, request: SourceRequest) -> Mixture:
    """The images of a prepared folder; see `open_image_files`.

    Raises:
      ValueError: see `PreparedImages.open`; settings that were applied when the folder was prepared.
    """
    captions = config.captions
    check(
        config.index is None, f"data.index must be None for source 'prepared', which stores sizes, got {config.index!r}"
    )
    check(
        captions.key is None and captions.lines in (None, "one"),
        "data.captions.key and lines must be None for source 'prepared', whose captions were read before, "
        f"got {captions.key!r} and {captions.lines!r}",
    )
    images = PreparedImages.open(Path(config.path or ""), request.split, dict(config.splits).get(request.split))
    return open_image_files(config, request, images)
