"""Vectors of numbers, such as the rows of a table: files of NumPy and CSV, read into memory.

A vector of n numbers is n tokens of one channel, and an array [n, d] is n tokens of d channels. An example holds it as
[n, 1, d], the layout of an image of n rows and one column, which a flow of `image_size` (n, 1) and d channels reads.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.source_config import SourceConfig
from starflow_jax.core.registries import SOURCES
from starflow_jax.data.decoding.bad_examples import error_reason
from starflow_jax.data.sources.source_request import SourceRequest
from starflow_jax.data.sources.splits import named_entry, split_names

SUFFIXES = (".npz", ".npy", ".csv")
# Of one file without splits, every tenth row is the test split.
_SHARE = 10


@dataclasses.dataclass(frozen=True, eq=False)
class VectorSource:
    """Vectors in memory.

    Attributes:
      name: name in logs.
      values: float32 [N, n, d], finite.
      labels: int32 [N], 0 to num_classes - 1.
      num_classes: number of classes, 1 without labels.
      lengths: int32 [N], 1 to n: the numbers of tokens, those behind them being padding; None without padding.

    Raises:
      ValueError: an array is not as stated.
    """

    name: str
    values: np.ndarray
    labels: np.ndarray
    num_classes: int
    lengths: np.ndarray | None = None

    def __post_init__(self) -> None:
        check(
            self.values.dtype == np.float32 and self.values.ndim == 3 and 0 not in self.values.shape,
            f"values of {self.name} must be float32 [N, n, d], all above 0, got {self.values.dtype} "
            f"{list(self.values.shape)}",
        )
        check(
            self.labels.dtype == np.int32 and self.labels.shape == self.values.shape[:1],
            f"labels of {self.name} must be int32 [{len(self.values)}], got {self.labels.dtype} "
            f"{list(self.labels.shape)}",
        )
        finite = np.isfinite(self.values).all(axis=(1, 2))
        row = int(np.argmin(finite))
        check(bool(finite.all()), f"values of {self.name} must be finite, got NaN or an infinity in row {row}")
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        check(
            lowest >= 0 and highest < self.num_classes,
            f"labels of {self.name} must be 0 to {self.num_classes - 1}, got {lowest} to {highest}",
        )

        if self.lengths is None:
            return
        lengths = self.lengths
        check(
            lengths.dtype == np.int32 and lengths.shape == self.labels.shape,
            f"lengths of {self.name} must be int32 [{len(self.values)}], got {lengths.dtype} {list(lengths.shape)}",
        )
        check(
            int(lengths.min()) >= 1 and int(lengths.max()) <= self.values.shape[1],
            f"lengths of {self.name} must be 1 to {self.values.shape[1]}, got {lengths.min()} to {lengths.max()}",
        )

    @property
    def levels(self) -> int:
        """0: continuous values."""
        return 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = {"image": self.values[index][:, None], "label": self.labels[index]}
        return example if self.lengths is None else example | {"length": self.lengths[index]}

    def digest(self) -> str:
        """Digest of all values and labels."""
        digest = hashlib.sha256(f"{self.values.shape}".encode())
        for array in (self.labels, self.values) if self.lengths is None else (self.labels, self.values, self.lengths):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]


@SOURCES.register("vectors", path=True, vectors=True, levels=0)
def open_vectors(config: SourceConfig, request: SourceRequest) -> VectorSource:
    """The vectors of `path`: a folder with a file for each split (train.csv and test.csv), or one file.

    - .npz: `x`, numbers [N], [N, n] or [N, n, d]; optionally `label`, integers [N], and `length`, integers [N]:
      the numbers of tokens before the padding. In one file for both splits, their names end in `_train` and `_test`.
    - .npy: the array x.
    - .csv: a row for each vector, with or without a line of names; a column called `label` holds classes.

    Of one file without splits, every tenth row is the test split, beginning with row 9.

    Raises:
      ValueError: there is no such file, or it is damaged or holds something else.
    """
    path = Path(config.path or "")
    if path.is_file():
        arrays, split = _read(path), request.split
        if not any(name.endswith(("_train", "_test")) for name in arrays):
            rows = np.arange(len(arrays["x"]))
            rows = rows[rows % _SHARE == _SHARE - 1] if split == "test" else rows[rows % _SHARE != _SHARE - 1]
            check(len(rows) > 0, f"data file {path} must contain at least {_SHARE} vectors for the {split} split")
            return _source(path, {name: array[rows] for name, array in arrays.items()}, split)
        named = {name.removesuffix(f"_{split}"): array for name, array in arrays.items() if name.endswith(f"_{split}")}
        check("x" in named, f"data file {path} must contain x_{split}, got the arrays {', '.join(sorted(arrays))}")
        return _source(path, named, split)
    files = [named_entry(path, request.split, suffix, Path.is_file) for suffix in SUFFIXES]
    file = next((file for file in files if file is not None), None)
    if file is None:
        names = ", ".join(f"{name}{suffix}" for name in split_names(request.split)[:1] for suffix in SUFFIXES)
        raise ValueError(f"data folder {path} must contain one of {names}, and does not")
    return _source(file, _read(file), request.split)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names; nothing in it is executed."""
    suffix = path.suffix.lower()
    check(suffix in SUFFIXES, f"data file {path} must end in {', '.join(SUFFIXES)}")
    try:
        if suffix == ".csv":
            arrays = _read_csv(path)
        else:
            loaded: Any = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                arrays = {"x": loaded}
            else:
                with loaded:
                    arrays = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a damaged file raises many kinds of errors
        raise ValueError(f"data file {path} cannot be read: {error_reason(error)}") from error
    known = {f"{name}{split}" for name in ("x", "label", "length") for split in ("", "_train", "_test")}
    unknown = sorted(set(arrays) - known)
    check(
        not unknown and len(arrays) > 0 and ("x" in arrays or any(name.endswith("_train") for name in arrays)),
        f"data file {path} must contain `x`, numbers [N, n] or [N, n, d], and optionally `label` and `length`, "
        f"integers [N], got the arrays {', '.join(sorted(arrays)) or 'none'}",
    )
    return arrays


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if not rows:
        raise ValueError("it is empty")
    names = [name.strip().lower() for name in rows[0]] if not _is_number(rows[0][0]) else []
    width = len(rows[0])
    for number, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(f"row {number + 1} has {len(row)} fields, and the first one {width}")
    table = np.asarray(rows[1:] if names else rows, np.float64)
    if "label" not in names:
        return {"x": table}
    column = names.index("label")
    return {"x": np.delete(table, column, axis=1), "label": table[:, column]}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _source(path: Path, arrays: dict[str, np.ndarray], split: str) -> VectorSource:
    """The source of the arrays of one split."""
    x, label = arrays["x"], arrays.get("label")
    check(
        x.dtype.kind in "fiu" and x.ndim in (1, 2, 3) and 0 not in x.shape,
        f"data file {path} must contain x as numbers [N], [N, n] or [N, n, d], got {x.dtype} {list(x.shape)}",
    )
    length = arrays.get("length")
    if length is not None:
        check(
            length.shape == (len(x),) and length.dtype.kind in "iu",
            f"data file {path} must contain length as integers [{len(x)}], got {length.dtype} {list(length.shape)}",
        )
        length = np.clip(length, -1, 2**31 - 1).astype(np.int32)
    values = x.reshape(*x.shape, *(1,) * (3 - x.ndim)).astype(np.float32)
    if label is None:
        return VectorSource(f"{path.stem}-{split}", values, np.zeros(len(x), np.int32), 1, length)
    check(
        label.shape == (len(x),) and label.dtype.kind in "iuf" and bool(np.all(label == np.floor(label))),
        f"data file {path} must contain label as integers [{len(x)}], got {label.dtype} {list(label.shape)}",
    )
    lowest, highest = float(label.min()), float(label.max())
    check(
        lowest >= 0 and highest < 2**31 - 1,
        f"data file {path} must contain labels from 0 to {2**31 - 2}, got {lowest:g} to {highest:g}",
    )
    return VectorSource(f"{path.stem}-{split}", values, label.astype(np.int32), int(highest) + 1, length)
