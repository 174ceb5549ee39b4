"""The manifest of a folder that `starflow prepare` writes, without which the folder is not read.

It is written last, after every shard, so that a folder with a manifest is complete.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.regular_files import read_bytes, read_json
from starflow_jax.data.decoding.bad_examples import error_reason

FORMAT = "starflow images 1"
MANIFEST_FILE = "manifest.json"
# Present as long as a folder is not complete: what it is being prepared from.
PLAN_FILE = "preparation.json"
_MAX_BYTES = 2**30
_MAX_CLASSES = 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"[A-Za-z0-9_]{1,64}-\d{5,9}-of-\d{5,9}\.array_record")


@dataclasses.dataclass(frozen=True)
class StoredShard:
    """One shard: the name of its file, its number of examples (0: there is no file), and the bytes of the file."""

    file: str
    count: int
    bytes: int

    @property
    def sizes_file(self) -> str:
        """The name of the file with rows and columns of its images, int32 [count, 2], little-endian."""
        return self.file.removesuffix(".array_record") + ".sizes"


@dataclasses.dataclass(frozen=True)
class StoredSplit:
    """One split.

    Attributes:
      count: number of examples; skipped: examples that could not be read when the split was written.
      fingerprint: 64 hexadecimal digits that depend on every byte of every example and on their order, and not on the
        number of shards.
      captions: numbers of examples by the kind of file that contained their captions; "" for those without any.
      reasons: numbers of skipped examples by reason; names: the reasons by name, of the first hundred.
      shards: the shards in order.
    """

    count: int
    skipped: int
    fingerprint: str
    captions: Mapping[str, int]
    reasons: Mapping[str, int]
    names: Mapping[str, str]
    shards: tuple[StoredShard, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder holds.

    Attributes:
      source: name of the data that were prepared; kind: what they were, a value of `PreparedKind`.
      features: the names in the source that image, label and caption were read from.
      num_classes: number of classes; classes: their names, empty where they have none.
      splits: the splits by name.
      notes: sentences about what the source contains and was not read.
      plan: what was asked for, by which the same request is recognised.
    """

    source: str
    kind: str
    features: Mapping[str, str]
    num_classes: int
    classes: tuple[str, ...]
    splits: Mapping[str, StoredSplit]
    notes: tuple[str, ...]
    plan: Mapping[str, Any]

    def to_values(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a folder.

    Raises:
      ValueError: there is none, for example since the folder is not complete, or it cannot be read.
    """
    path = folder / MANIFEST_FILE
    check(folder.is_dir(), f"data folder {folder} does not exist")
    unfinished = (folder / PLAN_FILE).is_file()
    check(
        path.is_file() or not unfinished,
        f"data folder {folder} is not complete: the same starflow prepare command continues it",
    )
    check(path.is_file(), f"data folder {folder} contains no {MANIFEST_FILE}: starflow prepare writes one")
    try:
        values = read_json(path, _MAX_BYTES)
        check(values["format"] == FORMAT, f"its format must be {FORMAT!r}, got {values['format']!r}")
        return _manifest(values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"data folder {folder} has a manifest that cannot be read: {error_reason(error)}") from error


def read_sizes(folder: Path, shard: StoredShard) -> np.ndarray:
    """Rows and columns of the images of a shard, int32 [count, 2].

    Raises:
      ValueError: the file is missing or damaged.
    """
    path = folder / shard.sizes_file
    try:
        data = read_bytes(path, 8 * shard.count)
        check(len(data) == 8 * shard.count, f"it has {len(data)} bytes and not {8 * shard.count}")
        sizes = np.frombuffer(data, "<i4").reshape(shard.count, 2)
        check(bool((sizes >= 1).all()), "a size is below 1")
    except (OSError, ValueError) as error:
        raise ValueError(f"data file {path} cannot be read: {error_reason(error)}") from error
    return sizes


def _manifest(values: Mapping[str, Any]) -> Manifest:
    classes = tuple(map(str, values["classes"]))
    num_classes = int(values["num_classes"])
    check(0 <= num_classes <= _MAX_CLASSES, f"num_classes is {num_classes}")
    check(not classes or len(classes) == num_classes, f"it names {len(classes)} of {num_classes} classes")
    splits = {str(name): _split(split) for name, split in values["splits"].items()}
    features = {str(name): str(feature) for name, feature in values["features"].items()}
    notes = tuple(map(str, values["notes"]))
    source, kind = str(values["source"]), str(values["kind"])
    return Manifest(source, kind, features, num_classes, classes, splits, notes, dict(values["plan"]))


def _split(values: Mapping[str, Any]) -> StoredSplit:
    shards = tuple(StoredShard(str(one["file"]), int(one["count"]), int(one["bytes"])) for one in values["shards"])
    for shard in shards:
        check(_SHARD.fullmatch(shard.file) is not None, "its shards must be names in this folder")
        check(shard.count >= 0 and shard.bytes >= 0, f"{shard.file} has {shard.count} examples")
    count, skipped = int(values["count"]), int(values["skipped"])
    check(count == sum(shard.count for shard in shards) > 0, f"its shards do not add up to {count} examples")
    fingerprint = str(values["fingerprint"])
    check(_DIGEST.fullmatch(fingerprint) is not None, "its fingerprint is not of 64 digits")
    captions, reasons = (
        {str(name): int(number) for name, number in values[field].items()} for field in ("captions", "reasons")
    )
    names = {str(name): str(reason) for name, reason in values["names"].items()}
    return StoredSplit(count, skipped, fingerprint, captions, reasons, names, shards)
