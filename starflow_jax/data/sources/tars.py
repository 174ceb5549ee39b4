"""Tar shards in WebDataset's layout: members of one name up to the first dot are one example.

The headers are read once; afterwards a member is a place in a file. Nothing is ever unpacked onto the disk: paths in
a tar are only names, links are left out.
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
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, reason_of
from starflow_jax.data.decoding.image_files import SUFFIXES
from starflow_jax.data.sources.collection import Captions, Item, captions_of_json, captions_of_text
from starflow_jax.data.sources.folders import split_names

_CAPTIONS = {".json": captions_of_json, ".txt": captions_of_text}
_CLASS = ".cls"


class Member(NamedTuple):
    """A file inside a tar: bytes `offset` to `offset + size`."""

    suffix: str
    offset: int
    size: int


class Entry(NamedTuple):
    """One example: its shard's number, its key, its picture, its class (-1: none), and its captions' members."""

    shard: int
    key: str
    picture: Member
    label: int
    beside: tuple[Member, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tars:
    """Pictures in tar shards, in the order of the shards' names and of the members.

    Attributes:
      name: for logs; shards: the files; entries: the examples.
      num_classes: one more than the largest number in a `.cls` member, 0 without any.
      skipped: shards that end too early, each counted and named once.
    """

    name: str
    shards: tuple[Path, ...]
    entries: tuple[Entry, ...]
    num_classes: int
    skipped: Skipped

    @classmethod
    def of(cls, path: str, split: str) -> Tars:
        """The shards of one split: `path` is a tar, a pattern such as "data/train-*.tar", or a folder.

        Raises:
          ValueError: no tars, or none with a picture.
        """
        shards = find_shards(path, split)
        check(len(shards) > 0, f"data path {path} holds no .tar file for the {split} split")
        skipped = Skipped()
        entries = [entry for number, shard in enumerate(shards) for entry in _entries(number, shard, skipped)]
        damaged = "".join(f" ({name}: {reason})" for name, reason in list(skipped.reasons.items())[:1])
        check(len(entries) > 0, f"data path {path} holds no picture in {len(shards)} tar files{damaged}")
        num_classes = max(entry.label for entry in entries) + 1
        return cls(Path(path).name, tuple(shards), tuple(entries), num_classes, skipped)

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, index: int) -> str:
        """Shard and key."""
        entry = self.entries[index]
        return f"{self.shards[entry.shard]}/{entry.key}"

    def read(self, index: int, captions: bool = False) -> Item:
        """One picture's bytes, with class and captions."""
        entry, name = self.entries[index], self.key(index)
        found: Captions = {}
        if captions:
            for suffix, read in _CAPTIONS.items():
                member = next((member for member in entry.beside if member.suffix == suffix), None)
                if member is not None and not found:
                    found = read(self._bytes(entry.shard, member, name), name)
        data = io.BytesIO(self._bytes(entry.shard, entry.picture, name))
        return Item(data, entry.label, found)

    def identity(self, index: int) -> str:
        """The names of the shard and in it, and the size of the picture."""
        entry = self.entries[index]
        return f"{self.shards[entry.shard].name}/{entry.key} {entry.picture.size}"

    def signature(self) -> str:
        """A digest of names, sizes and times of the shards."""
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
            raise BadExample(name, reason_of(error)) from error
        if len(data) != member.size:
            raise BadExample(name, f"the tar ends after {len(data)} of its {member.size} bytes")
        return data


def find_shards(path: str, split: str) -> list[Path]:
    """The tars that `path` names, sorted: itself, in it, in its folder of the split, or by pattern."""
    here = Path(path)
    if here.is_dir():
        names = split_names(split)
        inside = next((here / name for name in names if (here / name).is_dir()), None)
        if inside is not None:
            return sorted(inside.glob("*.tar"))
        own = [shard for name in names for shard in sorted(here.glob(f"{name}*.tar"))]
        return own or (sorted(here.glob("*.tar")) if split == "train" else [])
    if here.is_file():
        return [here] if split == "train" else []
    return sorted(Path(name) for name in glob.glob(path)) if split == "train" else []


def _entries(number: int, shard: Path, skipped: Skipped) -> list[Entry]:
    """The examples of one shard, up to where it is damaged."""
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
    except Exception as error:  # of headers that are damaged, tarfile raises several kinds
        skipped.add(1, [(str(shard), reason_of(error))])
    found = []
    for key, members in groups.items():
        pictures = [member for member in members if member.suffix in SUFFIXES]
        if pictures:
            beside = tuple(member for member in members if member.suffix in _CAPTIONS)
            found.append(Entry(number, key, pictures[0], labels.get(key, -1), beside))
    return found


def _key(name: str) -> tuple[str, str]:
    """A member's name up to the first dot of its last part, and what follows, from the last dot on."""
    folder, slash, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    suffix = "." + rest.rpartition(".")[2].lower() if dot and stem else ""
    return f"{folder}{slash}{stem}", suffix
