"""Captions in the metadata files of a folder, metadata.jsonl or metadata.csv, in the layout of Hugging Face."""

from __future__ import annotations

import csv
import io
import itertools
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from starflow_jax.data.decoding.bad_examples import BadExample, error_reason
from starflow_jax.data.sources.caption_files import KEYS, CaptionFormat
from starflow_jax.data.sources.image_collection import ExampleCaptions
from starflow_jax.data.sources.regular_file import open_regular

# In the order in which they are preferred, where one folder contains both.
TABLES = ("metadata.jsonl", "metadata.csv")
_FILE_COLUMNS = ("file_name", "image_file_name", "video_file_name", "filename")
_MAX_LINE = 2**20


@dataclass(eq=False)
class CaptionTables:
    """The captions in all metadata files of a folder.

    Attributes:
      captions: captions by the path of their file relative to the folder.
      rows: names of files in the tables, relative to the folder.
      notes: sentences about rows and tables that cannot be used.
    """

    captions: dict[str, ExampleCaptions] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read_tables(root: Path, tables: Sequence[str], reading: CaptionFormat) -> CaptionTables:
    """Reads metadata files; a table overrides those of the folders above it.

    Args:
      root: folder of the files; tables: paths of the metadata files relative to it, "../metadata.csv" for one above it,
        whose names of files then begin with the name of `root`.
    """
    result = CaptionTables()
    order = sorted(tables, key=lambda name: (_depth(name), -TABLES.index(posixpath.basename(name).lower()), name))
    for table in order:
        _read_table(root, table, reading, result)
    return result


def _read_table(root: Path, table: str, reading: CaptionFormat, result: CaptionTables) -> None:
    origin = posixpath.basename(table).lower()
    path = root / table
    by_file: dict[str, list[Mapping[str, tuple[str, ...]]]] = {}
    damaged, columns = [], set()
    try:
        for line, row in _rows(path):
            name = None if row is None else next((row[key] for key in _FILE_COLUMNS if row.get(key)), None)
            if row is None or not isinstance(name, str):
                damaged.append(line)
                continue
            columns |= set(row)
            file = _relative(root, posixpath.dirname(table), name)
            if file is None:
                continue
            result.rows.add(file)
            try:
                captions = reading.from_row(row, file)
            except BadExample:
                damaged.append(line)
                continue
            if any(captions.values()):
                by_file.setdefault(file, []).append(captions)
    except (OSError, ValueError, csv.Error) as error:
        result.notes.append(f"{path} cannot be read to its end: {error_reason(error)}")
    if damaged:
        result.notes.append(
            f"{len(damaged)} lines of {path} name no file, or contain captions that are not text or more cells than "
            f"columns, the first in line {damaged[0]}"
        )
    if columns and reading.column(columns) is None:
        result.notes.append(
            f"{path} has no column of captions among {', '.join(sorted(columns))}; data.captions.key names one"
        )
    for file, several in by_file.items():
        kinds = dict.fromkeys(kind for one in several for kind in one)
        result.captions[file] = ExampleCaptions(
            {kind: tuple(text for one in several for text in one.get(kind, ())) for kind in kinds}, origin
        )


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """The rows of a table with the numbers of their lines; None for a row that cannot be read."""
    with open_regular(path) as file:
        if path.suffix.lower() == ".csv":
            yield from _csv_rows(io.TextIOWrapper(file, "utf-8-sig", newline=""))
            return
        number = 0
        while line := file.readline(_MAX_LINE):
            number += 1
            if len(line) == _MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(_MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
                continue
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if text:
                yield number, _object(text)


def _csv_rows(text: TextIO) -> Iterator[tuple[int, Mapping[str, Any] | None]]:
    """The rows of a CSV file; None for a row of more cells than columns, as of a caption with commas without quotes.

    The separator is the one of comma, semicolon and tab that is most frequent in the first line.
    """
    header = text.readline(_MAX_LINE)
    lines = itertools.chain([header], text)
    reader = csv.DictReader(lines, delimiter=max(",;\t", key=header.count))
    reader.fieldnames = [_column_name(name) for name in reader.fieldnames or ()]
    for row in reader:
        yield reader.line_num, None if None in row else row


def _column_name(name: str) -> str:
    """A column's name without white space, and in lower case where it is one that is looked for."""
    name = name.strip()
    return name.lower() if name.lower() in (*_FILE_COLUMNS, *KEYS) else name


def _object(line: bytes) -> Mapping[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _relative(root: Path, folder: str, name: str) -> str | None:
    """The path of a file relative to the root; None for one that is not below it."""
    path = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    above = f"../{root.name}/"
    path = path.removeprefix(above) if path.startswith(above) else path
    return None if path.startswith(("../", "/")) else path


def _depth(table: str) -> int:
    return -1 if table.startswith("../") else table.count("/")
