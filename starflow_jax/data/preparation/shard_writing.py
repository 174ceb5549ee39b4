"""Writes one shard: its examples, their sizes, and last the facts about it, which make it part of the folder.

A shard depends on its examples alone, so that shards are written in any order, by any number of processes, and again
after an interruption, with the same bytes.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import io
import json
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from starflow_jax.core.atomic_writing import replacing, write_text
from starflow_jax.core.regular_files import read_json
from starflow_jax.data.decoding.bad_examples import MAX_NAMED, BadExample, Skipped, error_reason
from starflow_jax.data.decoding.image_decoding import image_file_size
from starflow_jax.data.sources.image_collection import ExampleCaptions, ImageCollection
from starflow_jax.data.sources.image_manifest import StoredShard
from starflow_jax.data.sources.stored_image import StoredImage
from starflow_jax.media.displayed_images import displayed, open_image

# Records are read one by one. The images are compressed already.
_OPTIONS = "group_size:1,uncompressed"
MAX_IMAGE_BYTES = 2**28
_REASONS = 50  # distinct reasons that are counted; further ones are counted together
_OTHER = "other reasons"
_PROGRESS = 100  # examples between two calls of `progress`


class ShardJob(NamedTuple):
    """A shard to write: examples `first` to `last` - 1 of a split; stem: the names of its files without suffixes."""

    split: str
    stem: str
    first: int
    last: int

    @property
    def record_file(self) -> str:
        """The name of the file of its examples."""
        return f"{self.stem}.array_record"

    @property
    def facts_file(self) -> str:
        """The name of the file with the facts about it, which is removed once all shards are written."""
        return f"{self.stem}.facts.json"


@dataclasses.dataclass
class ShardFacts:
    """What was written.

    Attributes:
      count: examples written; bytes: of the file; largest_label: -1 without any.
      digest: the sum of the SHA-256 of the index and the bytes of every example, modulo 2**256, hexadecimal.
      skipped: examples that could not be read; reasons: their numbers by reason; names: the reasons by name.
      captions: numbers of examples by the kind of file that contained their captions.
    """

    count: int = 0
    bytes: int = 0
    largest_label: int = -1
    digest: str = "0"
    skipped: int = 0
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    captions: dict[str, int] = dataclasses.field(default_factory=dict)


def read_facts(folder: Path, job: ShardJob) -> ShardFacts | None:
    """The facts about a shard that is written; None where it is not, or not whole."""
    try:
        facts = ShardFacts(**read_json(folder / job.facts_file))
        _check_facts(facts)
        path = folder / job.record_file
        sizes = folder / StoredShard(job.record_file, facts.count, facts.bytes).sizes_file
        whole = not facts.count or (path.stat().st_size, sizes.stat().st_size) == (facts.bytes, 8 * facts.count)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return facts if whole else None


def _check_facts(facts: ShardFacts) -> None:
    """Raises ValueError, TypeError or AttributeError for facts of other types, as in a file that somebody edited."""
    numbers = (facts.count, facts.bytes, facts.largest_label, facts.skipped, *facts.reasons.values())
    int(facts.digest, 16)
    for number in (*numbers, *facts.captions.values()):
        operator.index(number)
    "".join(facts.names.values())


def write_shards(
    collection: ImageCollection,
    folder: Path,
    jobs: Sequence[ShardJob],
    decode: bool,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes several shards of a split, one after another; see `write_shard`."""
    for job in jobs:
        write_shard(collection, folder, job, decode, progress)


def write_shard(
    collection: ImageCollection,
    folder: Path,
    job: ShardJob,
    decode: bool,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes one shard. What cannot be read is counted and left out.

    Args:
      collection: the images of the split; decode: whether each is decoded to its end.
      progress: called with numbers of further examples that were tried.

    Raises:
      ValueError: most of the examples cannot be read.
      OSError: a file cannot be written, or a store cannot be read.
    """
    facts, skipped = ShardFacts(), Skipped()
    reasons: collections.Counter[str] = collections.Counter()
    captions: collections.Counter[str] = collections.Counter()
    sizes: list[tuple[int, int]] = []
    total = 0
    target = folder / job.record_file
    with replacing(target) as temporary:
        with _Writer(temporary) as writer:
            for index in range(job.first, job.last):
                if progress is not None and (index - job.first) % _PROGRESS == _PROGRESS - 1:
                    progress(_PROGRESS)
                try:
                    image = _read(collection, index, decode)
                except BadExample as error:
                    known = error.reason in reasons or len(reasons) < _REASONS
                    reasons[error.reason if known else _OTHER] += 1
                    skipped.add(1, [(collection.relative_key(index), error.reason)])
                    continue
                skipped.add(1, [])
                record = image.pack()
                writer.write(record)
                total += int.from_bytes(hashlib.sha256(index.to_bytes(8, "little") + record).digest(), "big")
                sizes.append(image.size)
                captions[image.captions.origin] += 1
                facts.largest_label = max(facts.largest_label, image.label)
        facts.count, facts.bytes = len(sizes), temporary.stat().st_size
    if not sizes:
        target.unlink()
    else:
        with replacing(folder / StoredShard(target.name, facts.count, facts.bytes).sizes_file) as temporary:
            temporary.write_bytes(np.asarray(sizes, "<i4").tobytes())
    if progress is not None:
        progress((job.last - job.first) % _PROGRESS)
    facts.digest = f"{total % 2**256:x}"
    facts.skipped, facts.reasons, facts.captions = skipped.bad, dict(reasons), dict(captions)
    facts.names = dict(list(skipped.reasons.items())[:MAX_NAMED])
    write_text(folder / job.facts_file, json.dumps(dataclasses.asdict(facts)))


def _read(collection: ImageCollection, index: int, decode: bool) -> StoredImage:
    """One image with everything that is stored of it; raises BadExample."""
    name = collection.relative_key(index)
    read_captions: Callable[[int], ExampleCaptions] = getattr(collection, "captions", lambda _: ExampleCaptions({}))
    captions = read_captions(index)
    item = collection.read(index)
    with item.data as stream:
        data = stream.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise BadExample(name, f"it has more than {MAX_IMAGE_BYTES} bytes")
    size = image_file_size(io.BytesIO(data), name)
    if decode:
        _decode(data, name)
    origin = captions.origin if any(captions.texts.values()) else ""
    return StoredImage(data, item.label, size, name, ExampleCaptions(captions.texts, origin))


def _decode(data: bytes, name: str) -> None:
    try:
        with open_image(io.BytesIO(data)) as image:
            displayed(image, mode="RGB", background="white").load()
    except Exception as error:  # decoders raise many kinds of errors on damaged files
        raise BadExample(name, error_reason(error)) from error


class _Writer:
    """An ArrayRecord file, whose errors are those of files."""

    def __init__(self, path: Path):
        from array_record.python.array_record_module import ArrayRecordWriter

        self._path = path
        self._writer: Any = self._trying(lambda: ArrayRecordWriter(str(path), _OPTIONS))

    def write(self, record: bytes) -> None:
        """Adds one record."""
        self._trying(lambda: self._writer.write(record))

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._trying(self._writer.close)

    def _trying(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except RuntimeError as error:
            raise OSError(f"{self._path.parent} cannot be written: {error_reason(error)}") from error
