"""Data sets that TensorFlow Datasets has prepared as ArrayRecord, Parquet or TFRecord, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, error_reason
from starflow_jax.data.sources.image_collection import Captions, ExampleCaptions, Item
from starflow_jax.data.sources.image_files import open_image_files
from starflow_jax.data.sources.lazy_reader import LazyReader
from starflow_jax.data.sources.mixture import Mixture
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import split_names
from starflow_jax.data.sources.tfds_features import FeatureNames, feature_names, nested, value_at
from starflow_jax.data.sources.tfrecord_files import Part, TfRecordFiles

_READABLE = ("array_record", "parquet", "tfrecord")


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords:
    """Images of a prepared data set, with labels where it has them, and its texts as captions.

    Attributes:
      name: name of the data set.
      path: folder of one version, or the folder of data sets.
      split: name in the data set, or a part of it ("train[:90%]"); length: number of examples.
      features: the names of the features that are read.
      release: name, version and bytes of the split.
      records: the records of the split.
      any_label: whether labels are read, too, where the data set does not state the number of classes.
    """

    name: str
    path: Path
    split: str
    length: int
    features: FeatureNames
    release: str
    records: LazyReader[Any]
    any_label: bool = False
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    @classmethod
    def open(
        cls,
        path: Path,
        dataset: str | None,
        split: str,
        *,
        renamed: Mapping[str, str] | None = None,
        stored: str | None = None,
        any_label: bool = False,
    ) -> TfdsRecords:
        """Opens a prepared data set; nothing is downloaded.

        Args:
          path: folder of one version, or with `dataset` the folder of data sets.
          dataset: a name such as "mnist:3.0.1"; any_label: see above.
          split: "train" or "test"; stored: its name in the data set, or a part of one such as "train[:90%]". None for
            the first of the usual names.
          renamed: features for `image`, `label` and `caption`, where they have other names.

        Raises:
          ValueError: there is no such data set, split or feature, or it is in a format that needs TensorFlow.
        """
        check(path.is_dir(), f"data folder {path} does not exist")
        try:
            builder = _builder(path, dataset)
            info = builder.info
            splits, features, kind = list(info.splits), info.features, info.file_format.file_suffix
        except Exception as error:  # the library raises many kinds of errors
            raise ValueError(
                f"data folder {path} contains no data set of TensorFlow Datasets"
                f"{f' called {dataset}' if dataset else ''}: {error_reason(error)}"
            ) from error
        check(kind in _READABLE, f"data set {info.name} must be stored as {', '.join(_READABLE)}, got {kind}")
        if stored is None:
            stored = next((name for wanted in split_names(split) for name in splits if name.lower() == wanted), None)
            check(
                stored is not None,
                f"data set {info.name} must have the split {split!r}, got {', '.join(splits)}; "
                "data.splits names another",
            )
        try:
            facts = info.splits[stored]
            length, num_bytes = int(facts.num_examples), facts.num_bytes
        except Exception as error:  # the library raises many kinds of errors
            raise ValueError(
                f"data set {info.name} must have the split {stored!r}, got {', '.join(splits)}: {error_reason(error)}"
            ) from error
        check(length > 0, f"split {stored!r} of data set {info.name} must have examples, got none")
        names = feature_names(info.name, features, renamed or {})
        records = LazyReader(functools.partial(_records, path, dataset, str(stored), names.image))
        release = f"{info.full_name} {num_bytes}"
        return cls(info.name, path, str(stored), length, names, release, records, any_label)

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 where the data set does not state it."""
        return self.features.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.features.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about labels without a number of classes."""
        if self.features.label is None or self._reads_labels:
            return ()
        return (f"feature {self.features.label!r} states no number of classes: starflow prepare counts them",)

    @property
    def _reads_labels(self) -> bool:
        return self.features.label is not None and (self.num_classes > 0 or self.any_label)

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        """Data set, split and index."""
        return f"{self.path}:{self.split}[{index}]"

    def relative_key(self, index: int) -> str:
        """Split and index."""
        return f"{self.split}[{index}]"

    def read(self, index: int, captions: bool = False) -> Item:
        """Reads one record."""
        try:
            record = self.records()[index]
            data = value_at(record, self.features.image)
            label = int(value_at(record, str(self.features.label))) if self._reads_labels else -1
            texts: Captions = self.features.captions(record) if captions else {}
            stream = io.BytesIO(data)
        except Exception as error:  # parsers raise many kinds of errors on damaged records
            raise BadExample(self.key(index), error_reason(error)) from error
        return Item(stream, max(label, -1), texts)

    def captions(self, index: int) -> ExampleCaptions:
        """The texts of one record."""
        try:
            texts = self.features.captions(self.records()[index])
        except Exception as error:  # parsers raise many kinds of errors on damaged records
            raise BadExample(self.key(index), error_reason(error)) from error
        return ExampleCaptions(texts, "text feature")

    def identity(self, index: int) -> str:
        """Data set, version, split and index."""
        return f"{self.release}:{self.split}[{index}]"

    def signature(self) -> str:
        """Name, version, bytes, split and length of the data set, wherever it is stored."""
        return f"{self.release}:{self.split}:{self.length}"


def _builder(path: Path, dataset: str | None) -> Any:
    import tensorflow_datasets as tfds  # takes seconds

    if dataset is None:
        return tfds.builder_from_directory(str(path))
    return tfds.builder(dataset, data_dir=str(path))


def _records(path: Path, dataset: str | None, split: str, image: str) -> Any:
    import tensorflow_datasets as tfds

    builder = _builder(path, dataset)
    decoders = nested(image, tfds.decode.SkipDecoding())
    if builder.info.file_format.file_suffix != "tfrecord":
        return builder.as_data_source(split, decoders=decoders)
    parts = [Part(str(one.filename), one.skip, one.take) for one in builder.info.splits[split].file_instructions]
    parse = functools.partial(builder.info.features.deserialize_example_np, decoders=decoders)
    return TfRecordFiles(parts, parse)


@SOURCES.register("tfds", path=True, decoded=True, captions="text", fields=("dataset", "features", "splits"))
def open_tfds(config: SourceConfig, request: SourceRequest) -> Mixture:
    """The images of a prepared data set; see `open_image_files`."""
    stored = dict(config.splits).get(request.split)
    path = Path(config.path or "")
    records = TfdsRecords.open(path, config.dataset, request.split, renamed=dict(config.features), stored=stored)
    return open_image_files(config, request, records)
