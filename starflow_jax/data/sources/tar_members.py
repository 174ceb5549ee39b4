"""The members of one tar shard as examples: which belong together, which is the picture, and what is left aside."""

from __future__ import annotations

import collections
import dataclasses
import tarfile
from pathlib import Path
from typing import NamedTuple

from starflow_jax.core.config.checks import check
from starflow_jax.core.storage.ranged_files import StoredFile
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.data.decoding.bad_examples import Skipped, error_reason
from starflow_jax.data.sources.caption_files import FILE_KINDS
from starflow_jax.data.sources.regular_file import open_regular
from starflow_jax.data.sources.suffix_counts import most_frequent
from starflow_jax.media.file_kind import HEAD_BYTES
from starflow_jax.media.medium import IMAGES, is_open

_CLASS = ".cls"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A file inside a tar: bytes `offset` to `offset + size`; `ending` is its name from the end of its key on."""

    suffix: str
    offset: int
    size: int
    ending: str = ""


class Entry(NamedTuple):
    """One example: the index of its shard, its key, its image, its class (-1: none), and its caption files in order."""

    shard: int
    key: str
    image: Member
    label: int
    captions: tuple[Member, ...]


@dataclasses.dataclass(eq=False)
class LeftAside:
    """Counts of members that are not read.

    Attributes:
      images: images that share their key with the one that is read, by ending.
      keys: keys without an image; members: their members, by ending.
      collapsed: keys all of whose images have endings of several parts, such as img_22.05.jpg and img_22.10.jpg.
      repeated: members whose name occurred before in their shard; first: the first of them.
      labels: `.cls` members that contain no number; links: members that are links to others.
      ended: shards with more behind the end of the archive, as of tars joined by `cat`, or a damaged header.
    """

    images: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    keys: list[str] = dataclasses.field(default_factory=list)
    members: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    collapsed: list[str] = dataclasses.field(default_factory=list)
    repeated: int = 0
    first: str = ""
    labels: int = 0
    links: int = 0
    ended: list[str] = dataclasses.field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Sentences about what is left aside."""
        notes = []
        if self.images:
            notes.append(
                f"{self.images.total()} images share the key of another, which is read, and are left aside: "
                f"{most_frequent(self.images)}"
            )
        if self.keys:
            notes.append(
                f"{len(self.keys)} keys contain no image and are left aside, such as {self.keys[0]}: "
                f"{most_frequent(self.members)}"
            )
        if self.collapsed:
            notes.append(
                f"{len(self.collapsed)} keys contain several images whose names differ after the first dot, such as "
                f"{self.collapsed[0]}, and one of each is read; data.options=(('keys', 'last dot'),) ends keys at the "
                "last dot"
            )
        if self.repeated:
            notes.append(
                f"{self.repeated} members repeat a name of their tar, such as {self.first}, and the first of each is "
                "read"
            )
        if self.links:
            notes.append(f"{self.links} members are links and are left aside")
        if self.ended:
            notes.append(
                f"{len(self.ended)} tars, such as {self.ended[0]}, contain more behind the end of the archive or a "
                "damaged header, which is left aside; tars are joined by tar --concatenate, not by cat"
            )
        if self.labels:
            notes.append(f"{self.labels} .cls members contain no class number, and their examples have no class")
        return tuple(notes)


def check_uncompressed(shard: Path | StoredFile) -> None:
    """Raises ValueError for a compressed tar, which has no random access."""
    try:
        with open_regular(shard) as file:
            head = file.read(6)
    except StoreError:
        raise
    except OSError:
        return  # reported when its headers are read
    kind = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
    check(
        kind is None,
        f"tar {shard} must not be compressed, since its members are read in any order, got {kind}: unpack it first",
    )


def read_entries(
    index: int, shard: Path | StoredFile, skipped: Skipped, aside: LeftAside, *, last_dot: bool
) -> list[Entry]:
    """The examples of one shard, up to the first damaged header.

    Args:
      index: of the shard; skipped, aside: receive what cannot be read and what is left aside.
      last_dot: whether the key of a member ends at the last dot of its name; otherwise at the first.
    """
    groups: dict[str, list[Member]] = {}
    labels: dict[str, int] = {}
    try:
        length = shard.stat().st_size
        with open_regular(shard) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                key, ending = _key(member.name, last_dot)
                suffix = ending[ending.rfind(".") :]
                hidden = member.name.rpartition("/")[2].startswith(".")
                if hidden or not member.isreg() or member.issparse():
                    aside.links += not hidden and (member.islnk() or member.issym())
                    continue
                if member.offset_data + member.size > length:
                    raise ValueError(f"it ends inside {member.name}")
                known = groups.setdefault(key, [])
                if any(other.ending == ending for other in known):
                    aside.repeated += 1
                    aside.first = aside.first or member.name
                    continue
                known.append(Member(suffix, member.offset_data, member.size, ending))
                if suffix == _CLASS:
                    file = tar.extractfile(member) if member.size <= 16 else None
                    text = file.read().strip() if file else b""
                    labels[key] = int(text) if text.isdigit() and int(text) < 2**31 - 1 else -1
                    aside.labels += labels[key] < 0
            if _has_more(shard, tar.offset):
                aside.ended.append(shard.name)
    except StoreError:
        raise  # the store is away, and the shard is not damaged
    except Exception as error:  # tarfile raises several kinds of errors on damaged headers
        skipped.add(1, [(str(shard), error_reason(error))])
    entries = []
    for key, members in groups.items():
        if image := _image(shard, key, members, aside):
            entries.append(Entry(index, key, image, labels.get(key, -1), _captions(members)))
    return entries


def _has_more(shard: Path | StoredFile, offset: int) -> bool:
    """Whether anything but zeros follows the end of an archive."""
    with open_regular(shard) as file:
        file.seek(offset)
        while part := file.read(2**20):
            if part.strip(b"\0"):
                return True
    return False


def _image(shard: Path | StoredFile, key: str, members: list[Member], aside: LeftAside) -> Member | None:
    """The picture of an example: the first one with a single suffix, else the first one; None where there is none."""
    images = [member for member in members if member.suffix in IMAGES.suffixes] or _by_content(shard, members)
    if not images:
        aside.keys.append(key)
        aside.members.update(member.ending for member in members)
        return None
    single = [member for member in images if member.ending == member.suffix]
    chosen = (single or images)[0]
    others = [member for member in images if member is not chosen]
    if not single and any(member.suffix == chosen.suffix for member in others):
        aside.collapsed.append(key)
    else:
        aside.images.update(member.ending for member in others)
    return chosen


def _by_content(shard: Path | StoredFile, members: list[Member]) -> list[Member]:
    """The members with unknown suffixes whose first bytes are those of an image."""
    asked = [member for member in members if is_open(member.suffix) and member.suffix not in (_CLASS, *FILE_KINDS)]
    if not asked:
        return []
    images = []
    try:
        with open_regular(shard) as file:
            for member in asked:
                file.seek(member.offset)
                if IMAGES.in_head(file.read(min(member.size, HEAD_BYTES))):
                    images.append(member)
    except StoreError:
        raise
    except OSError:
        return images
    return images


def _captions(members: list[Member]) -> tuple[Member, ...]:
    """The caption files of an example, by kind, those with a single suffix first."""
    kinds = tuple(FILE_KINDS)
    candidates = [member for member in members if member.suffix in kinds]
    return tuple(sorted(candidates, key=lambda member: (kinds.index(member.suffix), member.ending != member.suffix)))


def _key(name: str, last_dot: bool) -> tuple[str, str]:
    """A member name up to the first (or last) dot of its last component, and the ending in lower case; "" for none."""
    folder, slash, last = name.rpartition("/")
    stem, dot, rest = last.rpartition(".") if last_dot else last.partition(".")
    return (f"{folder}{slash}{stem}", f".{rest.lower()}") if dot else (name, "")
