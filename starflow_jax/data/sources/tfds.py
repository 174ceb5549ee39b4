"""Data sets that TensorFlow Datasets prepared as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

from starflow_jax.core.config.checks import check
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped, reason_of
from starflow_jax.data.sources.collection import PLAIN, Captions, Item
from starflow_jax.data.sources.lazy import Opened


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsRecords:
    """Pictures of a prepared data set: its feature `image`, `label` where there is one, and texts as captions.

    Attributes:
      name: of the data set.
      path: folder of one version, or with `dataset` the folder of data sets; dataset: a name such as "mnist:3.0.1".
      split: as the data set calls it; length: examples in it; num_classes: of `label`, 0 without one.
      texts: features that are text, which become kinds of captions; release: name, version and bytes of the split.
      records: of the split.
    """

    name: str
    path: Path
    dataset: str | None
    split: str
    length: int
    num_classes: int
    texts: tuple[str, ...]
    release: str
    records: Opened[Any]
    skipped: Skipped = dataclasses.field(default_factory=Skipped)

    @classmethod
    def of(cls, path: Path, dataset: str | None, split: str) -> TfdsRecords:
        """Opens a data set that is prepared already; nothing is fetched.

        Raises:
          ValueError: no such data set or split, or one without pictures.
        """
        check(path.is_dir(), f"data folder {path} does not exist")
        try:
            builder = _builder(path, dataset)
            splits, features = list(builder.info.splits), builder.info.features
        except Exception as error:  # the library raises many kinds for what is missing or damaged
            raise ValueError(
                f"data folder {path} holds no data set of TensorFlow Datasets"
                f"{f' called {dataset}' if dataset else ''}: {reason_of(error)}"
            ) from error
        names = (split, "validation") if split == "test" else (split,)
        found = next((name for name in names if name in splits), None)
        check(found is not None, f"data set {builder.info.name} must have the split {split!r}, got {', '.join(splits)}")
        check(
            "image" in features and type(features["image"]).__name__ == "Image",
            f"data set {builder.info.name} must have a picture called 'image', got {', '.join(features)}",
        )
        texts = tuple(name for name in features if type(features[name]).__name__ == "Text")
        num_classes = int(features["label"].num_classes or 0) if "label" in features else 0
        facts = builder.info.splits[found]
        release = f"{builder.info.full_name} {facts.num_bytes}"
        records = Opened(functools.partial(_records, path, dataset, str(found)))
        length = int(facts.num_examples)
        return cls(builder.info.name, path, dataset, str(found), length, num_classes, texts, release, records)

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        """Data set, split and place."""
        return f"{self.path}:{self.split}[{index}]"

    def read(self, index: int, captions: bool = False) -> Item:
        """One record."""
        try:
            record = self.records()[index]
            data = record["image"]
            label = int(record["label"]) if self.num_classes else -1
            found: Captions = {}
            if captions:
                # One text alone is the caption; several keep their names.
                names = {self.texts[0]: PLAIN} if len(self.texts) == 1 else {}
                found = {names.get(name, name): (_text(record[name]),) for name in self.texts}
        except Exception as error:  # a damaged record raises what its parser happens to meet
            raise BadExample(self.key(index), reason_of(error)) from error
        return Item(io.BytesIO(data), label, found)

    def identity(self, index: int) -> str:
        """Data set and version, as it says of itself, split and place."""
        return f"{self.release}:{self.split}[{index}]"

    def signature(self) -> str:
        """What the data set says of itself."""
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
