"""What the files and arrays behind a cell hold, as part of its id: another content is another cell."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.data import DataConfig
from starflow_jax.core.config.source import SourceConfig
from starflow_jax.data.pipeline.content_digest import contents_digest
from starflow_jax.data.sources.base import ArraySource, Source

# Files of frozen models that were read before, by path: each is large, and read once a plan.
Known = dict[str, list[Any]]
# Where data lie, and what has a part in training alone.
_NO_CONTENT = ("path", "index", "flip", "drop_first", "aspect_ratios", "multiple")


def hash_of(values: Mapping[str, Any]) -> str:
    """A digest of plain values, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def described(path: str | None, known: Known) -> list[Any] | None:
    """Names and digests of the files of a frozen model; None for none, without any where nothing lies there.

    Args:
      known: what was read before; what is read now is added.
    """
    if path is None:
        return None
    root, scale = Path(path), None
    if not root.exists() and ":" in path:  # "PATH:0.6", a video autoencoder with a temporal scale
        text, _, scale = path.rpartition(":")
        root = Path(text)
    name = str(root.absolute())
    if name not in known:
        known[name] = [[one, _digest_of_file(file)] for one, file in _files(root)]
    return [scale, *known[name]]


def held(source: Source, data: DataConfig) -> list[Any]:
    """What a source holds: all of an array in memory; of files their names, sizes and times of change.

    Args:
      source: that was opened; data: how, of which the folders are looked into.
    """
    digest = contents_digest(source)
    if isinstance(source, ArraySource):
        return [digest]  # wherever it was read from
    parts: tuple[SourceConfig, ...] = (data, *data.mixture)
    return [digest, [_part(part) for part in parts]]


def _part(data: SourceConfig) -> list[Any]:
    fields = {field.name: getattr(data, field.name) for field in dataclasses.fields(SourceConfig)}
    fields = {name: value for name, value in fields.items() if name not in _NO_CONTENT}
    fields["captions"] = dataclasses.asdict(data.captions)
    if data.path is None:
        return [fields]
    roots = [Path(data.path)] if Path(data.path).exists() else [Path(found) for found in sorted(glob.glob(data.path))]
    index = None if data.index is None else Path(data.index).absolute()
    files = [(name, file.stat()) for root in roots for name, file in _files(root) if file.absolute() != index]
    digest = hashlib.sha256()
    for name, stat in files:
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return [fields, digest.hexdigest()]


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """A file, or all files below a folder, with their names in it, in one order everywhere."""
    if root.is_file():
        yield root.name, root
        return
    for file in sorted(root.rglob("*")):
        if file.is_file():
            yield file.relative_to(root).as_posix(), file


def _digest_of_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
