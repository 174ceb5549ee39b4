"""Data sets that TensorFlow Datasets has prepared as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, error_reason
from starflow_jax.data.sources.image_collection import DEFAULT_KIND, Captions, ExampleCaptions, Item
from starflow_jax.data.sources.image_files import open_image_files
from starflow_jax.data.sources.lazy_reader import LazyReader
from starflow_jax.data.sources.mixture import Mixture
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import split_names


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords:
    """Images of a prepared data set: its feature `image`, `label` where it has one, and its texts as captions.

    Attributes:
      name: name of the data set.
      path: folder of one version, or with `dataset` the folder of data sets; dataset: a name such as "mnist:3.0.1".
      split: name in the data set; length: number of examples; num_classes: of `label`, 0 without one.
      texts: text features, which become kinds of captions; classes: names of the classes.
      release: name, version and bytes of the split.
      records: the records of the split.
    """

    name: str
    path: Path
    dataset: str | None
    split: str
    length: int
    num_classes: int
    texts: tuple[str, ...]
    release: str
    records: LazyReader[Any]
    skipped: Skipped = dataclasses.field(default_factory=Skipped)
    classes: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path, dataset: str | None, split: str) -> TfdsRecords:
        """Opens a prepared data set; nothing is downloaded.

        Raises:
          ValueError: there is no such data set or split, or it has no images.
        """
        check(path.is_dir(), f"data folder {path} does not exist")
        try:
            builder = _builder(path, dataset)
            splits, features = list(builder.info.splits), builder.info.features
        except Exception as error:  # the library raises many kinds of errors
            raise ValueError(
                f"data folder {path} contains no data set of TensorFlow Datasets"
                f"{f' called {dataset}' if dataset else ''}: {error_reason(error)}"
            ) from error
        stored = next((name for wanted in split_names(split) for name in splits if name.lower() == wanted), None)
        check(
            stored is not None, f"data set {builder.info.name} must have the split {split!r}, got {', '.join(splits)}"
        )
        check(
            "image" in features and type(features["image"]).__name__ == "Image",
            f"data set {builder.info.name} must have an image feature called 'image', got {', '.join(features)}",
        )
        texts = tuple(name for name in features if type(features[name]).__name__ == "Text")
        num_classes = int(features["label"].num_classes or 0) if "label" in features else 0
        facts = builder.info.splits[stored]
        release = f"{builder.info.full_name} {facts.num_bytes}"
        records = LazyReader(functools.partial(_records, path, dataset, str(stored)))
        length = int(facts.num_examples)
        classes = tuple(map(str, features["label"].names)) if num_classes else ()
        skipped = Skipped()
        return cls(
            builder.info.name,
            path,
            dataset,
            str(stored),
            length,
            num_classes,
            texts,
            release,
            records,
            skipped,
            classes,
        )

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        """Data set, split and index."""
        return f"{self.path}:{self.split}[{index}]"

    def read(self, index: int, captions: bool = False) -> Item:
        """Reads one record."""
        try:
            record = self.records()[index]
            data = record["image"]
            label = int(record["label"]) if self.num_classes else -1
            texts: Captions = {}
            if captions:
                texts = self._captions(record)
        except Exception as error:  # parsers raise many kinds of errors on damaged records
            raise BadExample(self.key(index), error_reason(error)) from error
        return Item(io.BytesIO(data), label, texts)

    def captions(self, index: int) -> ExampleCaptions:
        """The texts of one record."""
        try:
            texts = self._captions(self.records()[index])
        except Exception as error:  # parsers raise many kinds of errors on damaged records
            raise BadExample(self.key(index), error_reason(error)) from error
        return ExampleCaptions(texts, "text feature")

    def _captions(self, record: Any) -> Captions:
        """A single text feature is the caption; several keep their names."""
        names = {self.texts[0]: DEFAULT_KIND} if len(self.texts) == 1 else {}
        texts = ((names.get(name, name), _text(record[name])) for name in self.texts)
        return {kind: (text,) if text.strip() else () for kind, text in texts}

    def identity(self, index: int) -> str:
        """Data set, version, split and index."""
        return f"{self.release}:{self.split}[{index}]"

    def signature(self) -> str:
        """Path, name, split and length of the data set."""
        return f"{self.path}:{self.dataset}:{self.split}:{self.length}"


def _builder(path: Path, dataset: str | None) -> Any:
    import tensorflow_datasets as tfds  # takes seconds

    if dataset is None:
        return tfds.builder_from_directory(str(path))
    return tfds.builder(dataset, data_dir=str(path), file_format="array_record")


def _records(path: Path, dataset: str | None, split: str) -> Any:
    import tensorflow_datasets as tfds

    return _builder(path, dataset).as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})


def _text(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


@SOURCES.register("tfds", path=True, decoded=True, captions="text", fields=("dataset",))
def open_tfds(config: SourceConfig, request: SourceRequest) -> Mixture:
    """The images of a prepared data set; see `open_image_files`."""
    records = TfdsRecords.open(Path(config.path or ""), config.dataset, request.split)
    return open_image_files(config, request, records)
