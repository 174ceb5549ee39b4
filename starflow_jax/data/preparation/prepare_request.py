"""A request to prepare data, with its checks."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from starflow_jax.core.choices import CaptionLines, PreparedKind, Split, TarKeys, choices
from starflow_jax.core.config.source_config import FEATURES, check_renaming
from starflow_jax.core.request_errors import require

# Examples of a shard where the number of shards is not given: a shard is opened in about a millisecond.
SHARD_EXAMPLES = 10_000
MAX_SHARDS = 10**6
_SPLIT = re.compile(r"[A-Za-z0-9_]{1,64}")


@dataclasses.dataclass(frozen=True)
class PrepareRequest:
    """What is prepared, and how it is written.

    Attributes:
      kind: "folder", "tar", "parquet" or "tfds".
      source: the folder, file or pattern, its address in a store, or the name of a data set of TensorFlow Datasets.
      out: the folder that is written: new, empty, or begun by the same request.
      splits: (name, name in the source) of each split; empty for all that the source has. Only "tfds" has other names
        than train and test, and parts of splits such as "train[:90%]".
      features: (name, name in the source) for `image`, `label` and `caption`: features of "tfds", columns of "parquet";
        for "folder" and "tar" the key of JSON files that contains captions.
      data_dir: the folder in which TensorFlow Datasets keeps prepared data sets; None for its own.
      shards: number of shards of each split; None for one for every 10,000 examples.
      workers: processes that write shards; 0 writes them in this one.
      caption_lines: see `CaptionConfig.lines`, for "folder" and "tar"; tar_keys: see `data.sources.tars`.
      decode: whether every image is decoded to its end, instead of its header alone.

    Raises:
      ValueError: a field that is out of range, or that the kind does not read.
    """

    kind: PreparedKind
    source: str
    out: Path
    splits: tuple[tuple[str, str], ...] = ()
    features: tuple[tuple[str, str], ...] = ()
    data_dir: Path | None = None
    shards: int | None = None
    workers: int = 0
    caption_lines: CaptionLines | None = None
    tar_keys: TarKeys | None = None
    decode: bool = False

    def __post_init__(self) -> None:
        kinds = choices(PreparedKind)
        require(self.kind in kinds, "{kind} must be one of {0}, got {1!r}", ", ".join(kinds), self.kind)
        require(
            bool(self.source.strip()) and "\0" not in self.source, "{source} must be a name, got {0!r}", self.source
        )
        allowed = FEATURES if self.kind in ("tfds", "parquet") else FEATURES[-1:]
        check_renaming("features", self.features, allowed)
        for field, readers in (
            ("data_dir", ("tfds",)),
            ("caption_lines", ("folder", "tar")),
            ("tar_keys", ("tar",)),
        ):
            value = getattr(self, field)
            require(
                value is None or self.kind in readers,
                f"{{{field}}} is read for {{0}}, and not for {{1}}: got {{2}}",
                " and ".join(readers),
                self.kind,
                value,
            )
        require(self.shards is None or 1 <= self.shards <= MAX_SHARDS, "{shards} must be 1 to {0}", MAX_SHARDS)
        require(self.workers >= 0, "{workers} must be at least 0, got {0}", self.workers)
        names = [name for name, _ in self.splits]
        require(len(set(names)) == len(names), "{splits} must name every split once, got {0}", ", ".join(names))
        for name, stored in self.splits:
            require(
                _SPLIT.fullmatch(name) is not None and bool(stored.strip()),
                "{splits} must be names of letters, digits and underscores, got {0!r}",
                name if stored.strip() else f"{name}={stored}",
            )
            require(
                self.kind == "tfds" or (name == stored and name in choices(Split)),
                "{splits} must be among {0} for {1}, got {2!r}",
                ", ".join(choices(Split)),
                self.kind,
                name if name == stored else f"{name}={stored}",
            )

    def num_shards(self, count: int) -> int:
        """The number of shards of a split of `count` examples."""
        shards = -(-count // SHARD_EXAMPLES) if self.shards is None else self.shards
        return max(min(shards, count, MAX_SHARDS), 1)
