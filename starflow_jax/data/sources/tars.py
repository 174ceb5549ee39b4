"""Tar shards in the WebDataset layout: members with the same name up to the first dot are one example.

The headers are read once; afterwards a member is a range of bytes in a file, or in an object of a store. Nothing is
unpacked to disk: paths in a tar are used as names only, and links are ignored.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path

from starflow_jax.core.choices import TarKeys, choices
from starflow_jax.core.config.checks import check, check_choice
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.core.storage.ranged_files import StoredFile
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, error_reason
from starflow_jax.data.sources.caption_files import (
    DEFAULT_FORMAT,
    FILE_KINDS,
    MAX_CAPTION_BYTES,
    CaptionFormat,
    has_text,
)
from starflow_jax.data.sources.image_collection import ExampleCaptions, Item
from starflow_jax.data.sources.image_files import open_image_files
from starflow_jax.data.sources.mixture import Mixture
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import relative_names, shard_files, shard_notes, shards_signature
from starflow_jax.data.sources.tar_members import Entry, LeftAside, Member, check_uncompressed, read_entries

# Values of the option `keys`.
KEYS_END = choices(TarKeys)


@dataclasses.dataclass(frozen=True, eq=False)
class Tars:
    """Images in tar shards, in the order of the names of the shards and of the members.

    Attributes:
      name: name in logs; shards: the files; entries: the examples.
      num_classes: one more than the largest label in a `.cls` member, 0 without any.
      skipped: truncated shards, each counted and named once.
      reading: how captions are read; notes: sentences about members that are left aside.
    """

    name: str
    shards: tuple[Path | StoredFile, ...]
    entries: tuple[Entry, ...]
    num_classes: int
    skipped: Skipped
    reading: CaptionFormat = DEFAULT_FORMAT
    notes: tuple[str, ...] = ()

    @classmethod
    def scan(cls, path: str, split: str, *, reading: CaptionFormat = DEFAULT_FORMAT, keys: str = KEYS_END[0]) -> Tars:
        """Reads the headers of one split: `path` is a tar, a pattern such as "data/train-*.tar", or a folder.

        Args:
          reading: how captions are read; keys: one of `KEYS_END`.

        Raises:
          ValueError: there are no tars, one is compressed, or none contains an image. StoreError: a store cannot be
            read.
        """
        shards = shard_files(path, split, ".tar")
        if not shards:
            packed = [file.name for ending in (".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2")
                      for file in shard_files(path, split, ending)]  # fmt: skip
            hint = f", but {len(packed)} compressed ones such as {packed[0]}: unpack them first" if packed else ""
            raise ValueError(f"data path {path} contains no .tar file for the {split} split{hint}")
        skipped, aside = Skipped(), LeftAside()
        for shard in shards:
            check_uncompressed(shard)
        entries = [
            entry
            for index, shard in enumerate(shards)
            for entry in read_entries(index, shard, skipped, aside, last_dot=keys == KEYS_END[1])
        ]
        damaged = "".join(f" ({name}: {reason})" for name, reason in list(skipped.reasons.items())[:1])
        check(len(entries) > 0, f"data path {path} contains no image in {len(shards)} tar files{damaged}")
        num_classes = max(entry.label for entry in entries) + 1
        notes = (*shard_notes(path, split, shards), *aside.notes())
        return cls(Path(path).name, tuple(shards), tuple(entries), num_classes, skipped, reading, notes)

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, index: int) -> str:
        """Shard and key in it."""
        entry = self.entries[index]
        return f"{self.shards[entry.shard]}/{entry.key}"

    def relative_key(self, index: int) -> str:
        """Shard, without the path to all shards, and key in it."""
        entry = self.entries[index]
        return f"{self._shard_names[entry.shard]}/{entry.key}"

    @functools.cached_property
    def _shard_names(self) -> tuple[str, ...]:
        return relative_names(self.shards)

    def read(self, index: int, captions: bool = False) -> Item:
        """The bytes of one image, with its class and captions.

        Raises:
          BadExample: they are missing or damaged. StoreError: the store cannot be read.
        """
        entry, name = self.entries[index], self.key(index)
        texts = self.captions(index).texts if captions else {}
        data = io.BytesIO(self._bytes(entry.shard, entry.image, name))
        return Item(data, entry.label, texts)

    def captions(self, index: int) -> ExampleCaptions:
        """Captions in the first of the members .json, .txt and .caption that has one."""
        entry, name = self.entries[index], self.key(index)
        for member in entry.captions:
            data = self._bytes(entry.shard, member._replace(size=min(member.size, MAX_CAPTION_BYTES + 1)), name)
            texts = self.reading.read(member.suffix, data, name)
            if has_text(texts):
                return ExampleCaptions(texts, FILE_KINDS[member.suffix])
        return ExampleCaptions({})

    def identity(self, index: int) -> str:
        """Name of the shard, key in it, and size of the image."""
        entry = self.entries[index]
        return f"{self.shards[entry.shard].name}/{entry.key} {entry.image.size}"

    def signature(self) -> str:
        """Digest of the names, sizes and modification times of the shards."""
        return shards_signature(self.shards)

    def _bytes(self, shard: int, member: Member, name: str) -> bytes:
        try:
            file = self.shards[shard]
            if isinstance(file, StoredFile):
                data = file.read(member.offset, member.size)
            else:
                with file.open("rb") as stream:
                    stream.seek(member.offset)
                    data = stream.read(member.size)
        except StoreError:
            raise  # the store is away, and the example is not at fault
        except OSError as error:
            raise BadExample(name, error_reason(error)) from error
        if len(data) != member.size:
            raise BadExample(name, f"the tar ends after {len(data)} of its {member.size} bytes")
        return data


@SOURCES.register("tars", path=True, decoded=True, captions="text", options=("keys",), addresses=True)
def open_tars(config: SourceConfig, request: SourceRequest) -> Mixture:
    """The images of tar shards; see `open_image_files`. The option `keys` is one of `KEYS_END`.

    Raises:
      ValueError: an unknown value of `keys`, or no images.
    """
    keys = str(dict(config.options).get("keys", KEYS_END[0]))
    check_choice("keys of data.options", keys, KEYS_END)
    reading = CaptionFormat.from_config(config.captions)
    return open_image_files(config, request, Tars.scan(config.path or "", request.split, reading=reading, keys=keys))
