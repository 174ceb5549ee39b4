"""Lists the files below a folder: linked folders are followed, each once in every class folder, so that loops end."""

from __future__ import annotations

import collections
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from starflow_jax.data.decoding.bad_examples import error_reason
from starflow_jax.data.sources.caption_files import FILE_KINDS
from starflow_jax.data.sources.caption_tables import TABLES
from starflow_jax.media.medium import Medium, is_open

# Folders that operating systems add to archives and shared folders.
_OF_THE_SYSTEM = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")


@dataclass(eq=False)
class Listing:
    """The files below a folder.

    Attributes:
      sizes: sizes in bytes of the data files by their path relative to the folder, with "/".
      forms: endings of caption files beside data files, such as ".txt", or ".png.txt" for "0.png.txt" beside "0.png".
      tables: relative paths of metadata files.
      not_followed: linked folders that lead to one that is read already.
      broken: links that lead to no file; unreadable: reasons why folders cannot be read, by path.
      others: counts by suffix of files that are neither data nor captions.
      stray: paths of caption files beside no data file of their name.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    forms: set[str] = field(default_factory=set)
    tables: list[str] = field(default_factory=list)
    not_followed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    others: collections.Counter[str] = field(default_factory=collections.Counter)
    stray: list[str] = field(default_factory=list)


def list_files(root: Path, medium: Medium) -> Listing:
    """Lists the regular files below `root` that are images or videos; hidden files and folders are left out.

    Files are taken by suffix; those whose suffix is unknown are opened.
    """
    listing = Listing()
    status = root.stat()
    start = (status.st_dev, status.st_ino)
    seen: dict[str, set[tuple[int, int]]] = {}  # folders that were read, by the first folder of the path
    links = list(_walk(root, "", medium, listing, seen, start, linked=False))
    while links:
        walks = (_walk(root, link, medium, listing, seen, start, linked=True) for link in sorted(links))
        links = list(itertools.chain.from_iterable(walks))
    return listing


def _walk(
    root: Path,
    begin: str,
    medium: Medium,
    listing: Listing,
    seen: dict[str, set[tuple[int, int]]],
    start: tuple[int, int],
    *,
    linked: bool,
) -> Iterator[str]:
    """Reads a folder and the folders in it; yields the relative paths of links to folders, without following them."""
    waiting = [begin]
    while waiting:
        folder = waiting.pop()
        identity, known = _identity(root / folder), seen.setdefault(_top(folder), set())
        if linked and (identity == start or identity in known):
            listing.not_followed.append(folder)
            continue
        if identity is not None:
            known.add(identity)
        names, captions, inside = [], [], []
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in _OF_THE_SYSTEM:
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        inside.append(path)
                    elif entry.is_symlink() and entry.is_dir():
                        yield path
                    elif entry.is_symlink() and not entry.is_file() and _size(entry) is None:
                        listing.broken.append(path)
                    elif entry.name.lower() in TABLES:
                        listing.tables.append(path)
                    elif (suffix := Path(entry.name).suffix.lower()) in FILE_KINDS:
                        captions.append(entry.name)
                    elif (size := _size(entry)) is not None and size >= 0:
                        if suffix in medium.suffixes or (is_open(suffix) and medium.in_file(root / path)):
                            listing.sizes[path] = size
                            names.append(entry.name)
                        else:
                            listing.others[suffix] += 1
        except OSError as error:
            listing.unreadable[str(root / folder)] = error_reason(error)
        waiting += sorted(inside, reverse=True)
        _match(folder, names, captions, listing)


def _match(folder: str, names: list[str], captions: list[str], listing: Listing) -> None:
    """Adds the endings of caption files that belong to a data file of the same folder, and the names of the others."""
    stems, whole = {Path(name).stem for name in names}, set(names)
    for caption in captions:
        stem, suffix = Path(caption).stem, Path(caption).suffix
        if stem in stems:
            listing.forms.add(suffix)
        if stem in whole:
            listing.forms.add(Path(stem).suffix + suffix)
        if stem not in stems and stem not in whole:
            listing.stray.append(f"{folder}/{caption}" if folder else caption)


def _size(entry: os.DirEntry[str]) -> int | None:
    """The size of a regular file; None for a broken link, -1 for anything else."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _top(path: str) -> str:
    return path.partition("/")[0]
