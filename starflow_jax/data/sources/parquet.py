"""Parquet shards in the layout of Hugging Face: a column of encoded images, and columns of captions and labels."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
import io
import itertools
import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.core.storage.ranged_files import StoredFile
from starflow_jax.core.storage.retries import StoreError
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, error_reason
from starflow_jax.data.sources.caption_files import CaptionFormat
from starflow_jax.data.sources.image_collection import Captions, ExampleCaptions, Item
from starflow_jax.data.sources.image_files import open_image_files
from starflow_jax.data.sources.lazy_reader import LazyReader
from starflow_jax.data.sources.mixture import Mixture
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import relative_names, shard_files, shard_notes, shards_signature

# Row groups that every process keeps in memory: a row is read with all rows of its group.
_KEPT_GROUPS = 8
_MAX_CLASSES = 2**20


class Group(NamedTuple):
    """A row group: the index of its shard, its index in the shard, and its number of rows."""

    shard: int
    row_group: int
    rows: int


@dataclasses.dataclass(frozen=True, eq=False)
class ParquetRows:
    """Images in rows of parquet files, in the order of the names of the files.

    Attributes:
      name: name in logs; shards: the files; groups: their row groups; ends: for each group, the rows up to its end.
      image, label: names of columns; label is None for rows without classes.
      num_classes: number of classes; classes: their names, empty where the files have none.
      reading: how captions are read; texts: the columns that are read for captions.
      groups_read: reads one row group, and keeps the last few; texts_read: likewise, without images.
    """

    name: str
    shards: tuple[Path | StoredFile, ...]
    groups: tuple[Group, ...]
    ends: tuple[int, ...]
    image: str
    label: str | None
    num_classes: int
    classes: tuple[str, ...]
    reading: CaptionFormat
    texts: tuple[str, ...]
    groups_read: LazyReader[_GroupCache]
    texts_read: LazyReader[_GroupCache]
    skipped: Skipped = dataclasses.field(default_factory=Skipped)
    notes: tuple[str, ...] = ()

    @classmethod
    def open(
        cls, path: str, split: str, reading: CaptionFormat, image: str = "image", label: str = "label"
    ) -> ParquetRows:
        """Reads the footers of the shards of one split; see `splits.shard_files`.

        Args:
          image, label: names of the columns; the column of labels may be missing.

        Raises:
          ValueError: pyarrow is not installed, or there are no shards, or they cannot be read or contain no images.
        """
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ValueError(
                "data.source 'parquet' needs the package pyarrow: pip install 'starflow-jax[parquet]'"
            ) from error
        shards = shard_files(path, split, ".parquet")
        check(len(shards) > 0, f"data path {path} contains no .parquet file for the {split} split")
        groups: list[Group] = []
        schema: Any = None
        for number, shard in enumerate(shards):
            try:
                with parquet.ParquetFile(_source(shard)) as file:
                    names = set(file.schema_arrow.names)
                    schema = file.schema_arrow if schema is None else schema
                    rows = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            except StoreError:
                raise
            except Exception as error:  # the library raises many kinds of errors on damaged files
                raise ValueError(f"data file {shard} cannot be read: {error_reason(error)}") from error
            missing = set(schema.names) - names
            check(not missing, f"data file {shard} must have the columns of {shards[0]}, got no {', '.join(missing)}")
            groups += [Group(number, index, count) for index, count in enumerate(rows) if count]
        check(len(groups) > 0, f"data path {path} contains no rows in {len(shards)} parquet files")
        check(
            image in schema.names,
            f"data path {path} must have a column {image!r} of images, got {', '.join(schema.names)}; "
            "data.options=(('image', NAME),) names another",
        )
        has_label = label in schema.names and str(schema.field(label).type).startswith(("int", "uint"))
        texts = tuple(key for key in reading.keys if key in schema.names)
        columns = (image, *((label,) if has_label else ()), *texts)
        cache = LazyReader(functools.partial(_GroupCache, tuple(shards), columns))
        classes = _class_names(schema, label) if has_label else ()
        num_classes = len(classes) or (_largest_label(shards, label) + 1 if has_label else 0)
        unread = (f"column {label!r} contains no numbers and is not read",)
        notes = unread if label in schema.names and not has_label else ()
        notes = (*shard_notes(path, split, shards), *notes)
        ends = tuple(itertools.accumulate(group.rows for group in groups))
        return cls(
            Path(path).name,
            tuple(shards),
            tuple(groups),
            ends,
            image,
            label if has_label else None,
            num_classes,
            classes,
            reading,
            texts,
            cache,
            LazyReader(functools.partial(_GroupCache, tuple(shards), texts)),
            notes=notes,
        )

    def __len__(self) -> int:
        return self.ends[-1]

    def key(self, index: int) -> str:
        """Shard and row in it."""
        shard, row = self._shard_and_row(index)
        return f"{self.shards[shard]}[{row}]"

    def relative_key(self, index: int) -> str:
        """Shard, without the path to all shards, and row in it."""
        shard, row = self._shard_and_row(index)
        return f"{self._shard_names[shard]}[{row}]"

    @functools.cached_property
    def _shard_names(self) -> tuple[str, ...]:
        return relative_names(self.shards)

    def read(self, index: int, captions: bool = False) -> Item:
        """The bytes of one image, with its class and captions.

        Raises:
          BadExample: they are missing or damaged. StoreError: the store cannot be read.
        """
        columns = (self.image, *((self.label,) if self.label else ()), *(self.texts if captions else ()))
        row = self._row(index, columns, self.groups_read)
        image = row[self.image]
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            raise BadExample(self.key(index), "its image is not stored in the file")
        label = row[self.label] if self.label else None
        number = label if isinstance(label, int) and 0 <= label < self.num_classes else -1
        return Item(io.BytesIO(data), number, self.reading.from_row(row, self.key(index)) if captions else {})

    def captions(self, index: int) -> ExampleCaptions:
        """Captions in the first column that has one."""
        if not self.texts:
            return ExampleCaptions({})
        texts: Captions = self.reading.from_row(self._row(index, self.texts, self.texts_read), self.key(index))
        return ExampleCaptions(texts, "parquet column")

    def identity(self, index: int) -> str:
        """Name of the shard and row in it."""
        group, row = self._group_and_row(index)
        shard = self.shards[self.groups[group].shard]
        return f"{shard.name} {self.groups[group].row_group} {row} {shard.stat().st_size if row == 0 else ''}"

    def signature(self) -> str:
        """Digest of the names, sizes and modification times of the shards."""
        return shards_signature(self.shards)

    def _shard_and_row(self, index: int) -> tuple[int, int]:
        shard = self.groups[self._group_and_row(index)[0]].shard
        first = bisect.bisect_left(self.groups, (shard,))
        return shard, index - (self.ends[first - 1] if first else 0)

    def _group_and_row(self, index: int) -> tuple[int, int]:
        group = bisect.bisect_right(self.ends, index)
        return group, index - (self.ends[group] - self.groups[group].rows)

    def _row(self, index: int, columns: tuple[str, ...], groups: LazyReader[_GroupCache]) -> dict[str, Any]:
        group, row = self._group_and_row(index)
        try:
            table = groups().read(self.groups[group])
            return {name: table.column(name)[row].as_py() for name in columns}
        except StoreError:
            raise  # the store is away, and the example is not at fault
        except Exception as error:  # the library raises many kinds of errors on damaged files
            raise BadExample(self.key(index), error_reason(error)) from error


class _GroupCache:
    """The last few row groups read by this process, as tables."""

    def __init__(self, shards: tuple[Path | StoredFile, ...], columns: tuple[str, ...]):
        self._shards, self._columns = shards, columns
        self._kept: collections.OrderedDict[Group, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, group: Group) -> Any:
        """The table of one row group."""
        import pyarrow.parquet as parquet

        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
        with parquet.ParquetFile(_source(self._shards[group.shard])) as file:
            table = file.read_row_group(group.row_group, columns=list(self._columns))
        with self._lock:
            self._kept[group] = table
            while len(self._kept) > _KEPT_GROUPS:
                self._kept.popitem(last=False)
        return table


def _source(shard: Path | StoredFile) -> Any:
    """What pyarrow opens: a path, or a file of a store that it reads by ranges."""
    return shard.open() if isinstance(shard, StoredFile) else shard


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The names of classes in the metadata that Hugging Face's datasets writes; empty without any."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) and len(names) <= _MAX_CLASSES else ()


def _largest_label(shards: list[Path | StoredFile], label: str) -> int:
    """The largest label of all shards, -1 where there is none."""
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    try:
        largest = [compute.max(parquet.read_table(_source(shard), columns=[label])[label]).as_py() for shard in shards]
    except Exception as error:  # the library raises many kinds of errors on damaged files
        raise ValueError(f"data file {shards[0]} cannot be read: {error_reason(error)}") from error
    highest = max((value for value in largest if value is not None), default=-1)
    check(highest < _MAX_CLASSES, f"column {label!r} of {shards[0]} must contain class numbers, got {highest}")
    return int(highest)


@SOURCES.register("parquet", path=True, decoded=True, captions="text", options=("image", "label"), addresses=True)
def open_parquet(config: SourceConfig, request: SourceRequest) -> Mixture:
    """The images of parquet files; see `open_image_files`. The options `image` and `label` name columns."""
    options = {name: str(value) for name, value in config.options}
    reading = CaptionFormat.from_config(config.captions)
    return open_image_files(config, request, ParquetRows.open(config.path or "", request.split, reading, **options))
