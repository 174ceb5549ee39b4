"""Hashes of the files and arrays that a cell is computed from, which are part of its id."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.data_config import DataConfig
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.storage.addresses import is_address
from starflow_jax.core.storage.copies import local_path, parts_of_pattern
from starflow_jax.core.storage.manifest import folder_files
from starflow_jax.core.storage.store import open_store
from starflow_jax.data.pipeline.content_digest import contents_digest
from starflow_jax.data.sources.base import ArraySource, Source

# Hashes of the files of frozen models by path. The files are large; each is read once for a plan.
FileHashes = dict[str, list[Any]]
# Fields that locate data, or that affect training alone; they are not part of the content.
_NOT_CONTENT = ("path", "index", "flip", "drop_first", "aspect_ratios", "multiple")


def values_hash(values: Mapping[str, Any]) -> str:
    """Hash of plain values, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def model_hashes(path: str | None, file_hashes: FileHashes) -> list[Any] | None:
    """Temporal scale, names and hashes of the files of a frozen model; None without a path, no files where none exist.

    Args:
      file_hashes: hashes that were computed before; new ones are added.
    """
    if path is None:
        return None
    root, scale = local_path(path), None
    if not root.exists() and ":" in path:  # "PATH:0.6", a video autoencoder with a temporal scale
        text, _, scale = path.rpartition(":")
        root = Path(text)
    name = str(root.absolute())
    if name not in file_hashes:
        file_hashes[name] = [[relative, _digest_of_file(file)] for relative, file in _files(root)]
    return [scale, *file_hashes[name]]


def content_hashes(source: Source, data: DataConfig) -> list[Any]:
    """The content of a source: a hash of arrays in memory, or names, sizes and modification times of files.

    Args:
      source: that was opened; data: its configuration, whose folders are read.
    """
    digest = contents_digest(source)
    if isinstance(source, ArraySource):
        return [digest]  # does not depend on where it was read from
    parts: tuple[SourceConfig, ...] = (data, *data.mixture)
    return [digest, [_part(part) for part in parts]]


def _part(data: SourceConfig) -> list[Any]:
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(SourceConfig)}
    fields = {name: value for name, value in fields.items() if name not in _NOT_CONTENT}
    fields["captions"] = dataclasses.asdict(data.captions)
    if data.path is None:
        return [fields]
    if is_address(data.path):
        return [fields, _stored_digest(data.path)]
    roots = [Path(data.path)] if Path(data.path).exists() else [Path(match) for match in sorted(glob.glob(data.path))]
    index = None if data.index is None else Path(data.index).absolute()
    files = [(name, file.stat()) for root in roots for name, file in _files(root) if file.absolute() != index]
    digest = hashlib.sha256()
    for name, stat in files:
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return [fields, digest.hexdigest()]


def _stored_digest(path: str) -> str:
    """The digest of names, sizes and times of files in a store, which is that of a local copy of all of them."""
    folder, pattern = parts_of_pattern(path)
    store = open_store(folder)
    facts = store.facts() if not pattern and folder.key else None
    if facts is not None:
        rows = [(folder.name, facts.size, facts.modified_ns)]
    else:
        files = folder_files(store).files
        chosen = sorted(name for name in files if not pattern or fnmatch.fnmatchcase(name, pattern))
        rows = [(name, files[name].size, files[name].modified_ns) for name in chosen]
    digest = hashlib.sha256()
    for name, size, modified_ns in rows:
        digest.update(f"{name} {size} {modified_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """A file, or all files below a folder, with their relative names, sorted."""
    if root.is_file():
        yield root.name, root
        return
    for file in sorted(root.rglob("*")):
        if file.is_file():
            yield file.relative_to(root).as_posix(), file


def _digest_of_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
