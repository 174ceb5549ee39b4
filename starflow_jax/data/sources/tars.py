"""Tar shards in the WebDataset layout: members with the same name up to the first dot are one example.

The headers are read once; afterwards a member is a range of bytes in a file. Nothing is unpacked to disk: paths in
a tar are used as names only, and links are ignored.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, error_reason
from starflow_jax.data.decoding.image_decoding import SUFFIXES
from starflow_jax.data.sources.folders import split_names
from starflow_jax.data.sources.image_collection import Captions, Item, captions_from_json, captions_from_text
from starflow_jax.data.sources.image_files import open_image_files
from starflow_jax.data.sources.mixture import Mixture
from starflow_jax.data.sources.source_request import SourceRequest

_CAPTIONS = {".json": captions_from_json, ".txt": captions_from_text}
_CLASS = ".cls"


class Member(NamedTuple):
    """A file inside a tar: bytes `offset` to `offset + size`."""

    suffix: str
    offset: int
    size: int


class Entry(NamedTuple):
    """One example: the index of its shard, its key, its image, its class (-1: none), and its caption files."""

    shard: int
    key: str
    image: Member
    label: int
    captions: tuple[Member, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tars:
    """Images in tar shards, in the order of the names of the shards and of the members.

    Attributes:
      name: name in logs; shards: the files; entries: the examples.
      num_classes: one more than the largest label in a `.cls` member, 0 without any.
      skipped: truncated shards, each counted and named once.
    """

    name: str
    shards: tuple[Path, ...]
    entries: tuple[Entry, ...]
    num_classes: int
    skipped: Skipped

    @classmethod
    def scan(cls, path: str, split: str) -> Tars:
        """Reads the headers of one split: `path` is a tar, a pattern such as "data/train-*.tar", or a folder.

        Raises:
          ValueError: there are no tars, or none contains an image.
        """
        shards = find_shards(path, split)
        check(len(shards) > 0, f"data path {path} contains no .tar file for the {split} split")
        skipped = Skipped()
        entries = [entry for index, shard in enumerate(shards) for entry in _entries(index, shard, skipped)]
        damaged = "".join(f" ({name}: {reason})" for name, reason in list(skipped.reasons.items())[:1])
        check(len(entries) > 0, f"data path {path} contains no image in {len(shards)} tar files{damaged}")
        num_classes = max(entry.label for entry in entries) + 1
        return cls(Path(path).name, tuple(shards), tuple(entries), num_classes, skipped)

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, index: int) -> str:
        """Shard and key in it."""
        entry = self.entries[index]
        return f"{self.shards[entry.shard]}/{entry.key}"

    def read(self, index: int, captions: bool = False) -> Item:
        """The bytes of one image, with its class and captions."""
        entry, name = self.entries[index], self.key(index)
        texts: Captions = {}
        if captions:
            for suffix, read in _CAPTIONS.items():
                member = next((member for member in entry.captions if member.suffix == suffix), None)
                if member is not None and not texts:
                    texts = read(self._bytes(entry.shard, member, name), name)
        data = io.BytesIO(self._bytes(entry.shard, entry.image, name))
        return Item(data, entry.label, texts)

    def identity(self, index: int) -> str:
        """Name of the shard, key in it, and size of the image."""
        entry = self.entries[index]
        return f"{self.shards[entry.shard].name}/{entry.key} {entry.image.size}"

    def signature(self) -> str:
        """Digest of the names, sizes and modification times of the shards."""
        digest = hashlib.sha256()
        for shard in self.shards:
            status = shard.stat()
            digest.update(f"{shard.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def _bytes(self, shard: int, member: Member, name: str) -> bytes:
        try:
            with self.shards[shard].open("rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as error:
            raise BadExample(name, error_reason(error)) from error
        if len(data) != member.size:
            raise BadExample(name, f"the tar ends after {len(data)} of its {member.size} bytes")
        return data


def find_shards(path: str, split: str) -> list[Path]:
    """The tars of one split, sorted: `path` itself, files in the folder `path`, or matches of a pattern."""
    here = Path(path)
    if here.is_dir():
        names = split_names(split)
        folder = next((here / name for name in names if (here / name).is_dir()), None)
        if folder is not None:
            return sorted(folder.glob("*.tar"))
        named = [shard for name in names for shard in sorted(here.glob(f"{name}*.tar"))]
        return named or (sorted(here.glob("*.tar")) if split == "train" else [])
    if here.is_file():
        return [here] if split == "train" else []
    return sorted(Path(name) for name in glob.glob(path)) if split == "train" else []


def _entries(index: int, shard: Path, skipped: Skipped) -> list[Entry]:
    """The examples of one shard, up to the first damaged header."""
    groups: dict[str, list[Member]] = {}
    labels: dict[str, int] = {}
    try:
        length = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, suffix = _key(member.name)
                if member.isreg() and not member.issparse() and suffix:
                    if member.offset_data + member.size > length:
                        raise ValueError(f"it ends inside {member.name}")
                    groups.setdefault(key, []).append(Member(suffix, member.offset_data, member.size))
                    if suffix == _CLASS and member.size <= 16:
                        file = tar.extractfile(member)
                        text = file.read().strip() if file else b""
                        labels[key] = int(text) if text.isdigit() and int(text) < 2**31 - 1 else -1
    except Exception as error:  # tarfile raises several kinds of errors on damaged headers
        skipped.add(1, [(str(shard), error_reason(error))])
    entries = []
    for key, members in groups.items():
        images = [member for member in members if member.suffix in SUFFIXES]
        if images:
            captions = tuple(member for member in members if member.suffix in _CAPTIONS)
            entries.append(Entry(index, key, images[0], labels.get(key, -1), captions))
    return entries


def _key(name: str) -> tuple[str, str]:
    """A member name up to the first dot of its last component, and its suffix."""
    folder, slash, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    suffix = "." + rest.rpartition(".")[2].lower() if dot and stem else ""
    return f"{folder}{slash}{stem}", suffix


@SOURCES.register("tars", path=True, decoded=True, captions="text")
def open_tars(config: SourceConfig, request: SourceRequest) -> Mixture:
    """The images of tar shards; see `open_image_files`."""
    return open_image_files(config, request, Tars.scan(config.path or "", request.split))
