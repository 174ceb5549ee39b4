"""Label tables: text files with one label per line, encoded as one-hot vectors (specification, section 7).

A label may consist of several words; the whole caption is looked up and is one text token.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from starflow_jax.core.config.checks import check
from starflow_jax.models.text.protocol import Params
from starflow_jax.sharding.layout import Layout

LABEL_SUFFIX = ".vocab"
_MAX_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """A `TextEncoder` without parameters; id 0 is the absence of a label, id i the i-th label, counted from 1.

    Attributes:
      labels: V labels, all different.
    """

    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        check(len(self.labels) > 0, "labels must be at least one, got none")
        empty = [line for line, label in enumerate(self.labels, start=1) if not label or label != label.strip()]
        check(not empty, f"labels must not be empty or have spaces around them, got one in line {empty[:1]}")
        previous: set[str] = set()
        repeated = [label for label in self.labels if label in previous or previous.add(label)]  # type: ignore[func-returns-value]
        check(not repeated, f"labels must all be different, got {repeated[:1]} again")

    @property
    def length(self) -> int:
        """1."""
        return 1

    @property
    def dim(self) -> int:
        """V."""
        return len(self.labels)

    def index(self, label: str) -> int:
        """The index of a label from 0, as a class.

        Raises:
          ValueError: the label is not in the table.
        """
        return int(self.ids([label])[0, 0]) - 1

    def ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B 1"]:
        """Ids int32 [B, 1]; 0 for the empty caption.

        Raises:
          ValueError: a caption is not a label.
        """
        check(not isinstance(captions, str), f"captions must be a sequence of strings, got the string {captions!r}")
        ids = self.known_ids(captions)
        for caption, (row,) in zip(captions, ids, strict=True):
            if row == 0 and caption.strip():
                near = difflib.get_close_matches(caption, self.labels, n=3, cutoff=0.6)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise ValueError(f"caption must be one of {len(self.labels)} labels, got {caption!r}{hint}")
        return ids

    def known_ids(self, captions: Sequence[str]) -> Int[np.ndarray, "B 1"]:
        """Ids int32 [B, 1]; 0 also for captions that are not labels."""
        ids = {label: index for index, label in enumerate(self.labels, start=1)}
        return np.asarray([[ids.get(caption.strip(), 0)] for caption in captions], np.int32).reshape(-1, 1)

    def encode(
        self, params: Params, ids: Int[jax.Array | np.ndarray, "B L"], layout: Layout | None = None
    ) -> Float[Array, "B L D"]:
        """One-hot states float32 [B, 1, V], zeros for no label."""
        return jax.nn.one_hot(ids - 1, len(self.labels))


def read_labels(path: Path) -> LabelTable:
    """Reads a table from a text file with one label per line, ignoring spaces around labels and empty lines at the end.

    Raises:
      ValueError: the file is missing or not UTF-8, or has an empty line or a label twice.
    """
    check(path.is_file(), f"label table {path} does not exist")
    try:
        size = path.stat().st_size
        check(size <= _MAX_BYTES, f"label table {path} must have at most {_MAX_BYTES} bytes, got {size}")
        lines = path.read_text(encoding="utf-8-sig").rstrip("\r\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"label table {path} must be text in UTF-8, got other bytes") from error
    except OSError as error:
        raise ValueError(f"label table {path} cannot be read: {error.strerror or error}") from error
    try:
        return LabelTable(tuple(line.strip() for line in lines))
    except ValueError as error:
        raise ValueError(f"label table {path}: {error}") from error
