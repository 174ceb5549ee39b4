"""Splits in the names of folders and files: `train`, `Train`, `TEST`, `val`, `valid` or `validation`; their shards."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from starflow_jax.core.config.checks import check
from starflow_jax.core.storage.addresses import is_address
from starflow_jax.core.storage.copies import parts_of_pattern
from starflow_jax.core.storage.manifest import folder_files
from starflow_jax.core.storage.ranged_files import StoredFile
from starflow_jax.core.storage.store import open_store

F = TypeVar("F", Path, StoredFile)

_NAMES = {"test": ("test", "val", "validation", "valid")}


def split_names(split: str) -> tuple[str, ...]:
    """The names of a split in lower case, the preferred one first; the case of a name does not matter."""
    return _NAMES.get(split, (split,))


def named_entry(path: Path, split: str, suffix: str, accepts: Callable[[Path], bool]) -> Path | None:
    """The entry of the folder `path` that is called after the split; None where there is none.

    Args:
      suffix: of the entry, in lower case; "" for a folder.
      accepts: whether an entry is of the right kind.
    """
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return None
    for name in split_names(split):
        wanted = f"{name}{suffix}"
        named = [entry for entry in entries if entry.name.lower() == wanted and accepts(entry)]
        if named:
            return next((entry for entry in named if entry.name == wanted), named[0])
    return None


def split_folder(path: Path, split: str) -> Path:
    """The folder of a split: a folder of its name inside `path`; the training split may be `path` itself.

    Raises:
      ValueError: there is no such folder.
    """
    inside = named_entry(path, split, "", Path.is_dir)
    if inside is not None:
        return inside
    check(path.is_dir(), f"data folder {path} does not exist")
    other = named_entry(path, "test", "", Path.is_dir)
    names = " or ".join(split_names(split))
    hint = "" if other is None or split != "train" else f", since it contains a folder {other.name}"
    check(
        split == "train" and other is None,
        f"data folder {path} must contain a folder {names} for the {split} split{hint}",
    )
    return path


def shard_files(path: str, split: str, suffix: str) -> list[Path | StoredFile]:
    """The files of one split that end in `suffix`, sorted.

    `path` is a file or a pattern such as "data/train-*.tar", which are the training split; or a folder; or the address
    of one of them. Of a folder, those in a folder named after the split are taken, else those whose names begin with
    the split, else all of them for the training split.
    """
    if is_address(path):
        return list(_stored_shards(path, split, suffix))
    root = Path(path)
    if root.is_dir():
        inside = named_entry(root, split, "", Path.is_dir)
        if inside is not None:
            return list(_files(inside, suffix))
        return list(_named_after(_files(root, suffix), split))
    if split != "train":
        return []
    if root.is_file():
        return [root]
    return sorted(Path(file) for file in glob.glob(path) if Path(file).is_file())


def _named_after(files: list[F], split: str) -> list[F]:
    """The files whose names begin with the split; where there are none, all of them for the training split."""
    for names in (split_names(split)[:1], split_names(split)[1:]):
        named = [file for file in files if names and file.name.lower().startswith(names)]
        if named:
            return named
    return files if split == "train" else []


def _stored_shards(path: str, split: str, suffix: str) -> list[StoredFile]:
    """`shard_files` of an address."""
    folder, pattern = parts_of_pattern(path)
    store = open_store(folder)
    facts = store.facts() if folder.key and not pattern else None
    if facts is not None:
        return [StoredFile.at(folder, facts.size, facts.modified_ns)] if split == "train" else []
    stored = folder_files(store).files
    files = {name: StoredFile.at(folder / name, file.size, file.modified_ns) for name, file in stored.items()}
    if pattern:
        chosen = [file for name, file in sorted(files.items()) if fnmatch.fnmatchcase(name, pattern)]
        return chosen if split == "train" else []

    def within(prefix: str) -> list[StoredFile]:
        shards = []
        for name, file in sorted(files.items()):
            last = name.removeprefix(prefix)
            if name.startswith(prefix) and "/" not in last and last.lower().endswith(suffix) and last[0] != ".":
                shards.append(file)
        return shards

    folders = sorted({name.partition("/")[0] for name in files if "/" in name})
    for wanted in split_names(split):
        named = [name for name in folders if name.lower() == wanted]
        if named:
            return within(f"{wanted if wanted in named else named[0]}/")
    return _named_after(within(""), split)


def shard_notes(path: str, split: str, shards: Sequence[Path | StoredFile]) -> tuple[str, ...]:
    """A sentence about shards that are called after the test split and read for training; empty without any."""
    named = [shard.name for shard in shards if shard.name.lower().startswith(split_names("test"))]
    if split != "train" or not named or not (is_address(path) or Path(path).is_dir()):
        return ()
    return (
        f"{len(named)} shards called after the test split, such as {named[0]}, are read for training, since none is "
        "called train",
    )


def relative_names(shards: Sequence[Path | StoredFile]) -> tuple[str, ...]:
    """The paths of shards relative to the folder that contains all of them; a name alone where they share a folder."""
    paths = [str(shard).split("/") for shard in shards]
    columns = zip(*(path[:-1] for path in paths), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return tuple("/".join(path[shared:]) for path in paths)


def shards_signature(shards: Sequence[Path | StoredFile]) -> str:
    """Digest of the names, sizes and modification times of shards."""
    digest = hashlib.sha256()
    for shard in shards:
        status = shard.stat()
        digest.update(f"{shard.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.name.lower().endswith(suffix) and not file.name.startswith(".") and file.is_file()
    )
