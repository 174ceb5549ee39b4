"""Likelihoods of a run, from the JSON files that `starflow evaluate`, `score` and `sweep` wrote into its folder.

The files are recognised by their fields. They may be of other programs and of any content.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from starflow_jax.core.regular_files import parse_json, read_json, read_text
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, CONFIG_FILE, EVENTS_FOLDER

HEADER = ("file", "scored", "step", "bits/dim", "s.e.", "examples", "accuracy")
MOST_ROWS = 200
_MOST_FILES = 100
_MOST_BYTES = 2**24
_SWEEP_FILE = "results.jsonl"


class Found(NamedTuple):
    """Likelihoods and what could not be read.

    Attributes:
      rows: of a table with the columns `HEADER`, at most `MOST_ROWS`.
      remarks: sentences on files that could not be read, or on rows that are left out.
    """

    rows: list[tuple[str, ...]]
    remarks: list[str]


def read_likelihoods(workdir: Path, more: Mapping[str, Any] | None = None) -> Found:
    """The likelihoods in the JSON files of the folder of a run and of the folders directly in it.

    Args:
      more: further results by the name of their file.
    """
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    for name, result in (more or {}).items():
        rows += likelihood_rows(name, result)
    files = list(_files(workdir))
    for path in files[:_MOST_FILES]:
        name = path.relative_to(workdir).as_posix()
        try:
            if path.name == _SWEEP_FILE:
                values: Any = {"cells": _json_lines(path)}
            else:
                values = read_json(path, _MOST_BYTES)
        except ValueError as error:
            remarks.append(f"{name} is left out: {str(error).removeprefix(f'{path} ')}.")
            continue
        rows += likelihood_rows(name, values)
    if len(files) > _MOST_FILES:
        remarks.append(f"The folder has {len(files)} JSON files, of which the first {_MOST_FILES} are read.")
    if len(rows) > MOST_ROWS:
        remarks.append(f"The first {MOST_ROWS} of {len(rows)} rows are shown.")
    return Found(rows[:MOST_ROWS], remarks)


def _files(workdir: Path) -> Iterator[Path]:
    """The files that may hold results, by name."""
    entries = sorted(workdir.iterdir())
    for path in entries:
        if _may_hold_results(path):
            yield path
    for folder in entries:
        if folder.is_dir() and folder.name not in (CHECKPOINT_FOLDER, EVENTS_FOLDER) and folder.name[0] != ".":
            try:
                inner = sorted(folder.iterdir())
            except OSError:  # no permission, or removed in the meantime
                continue
            yield from (path for path in inner if _may_hold_results(path))


def _may_hold_results(path: Path) -> bool:
    named = path.name == _SWEEP_FILE or (path.suffix == ".json" and path.name != CONFIG_FILE)
    return named and path.name[0] != "." and path.is_file()


def _json_lines(path: Path) -> list[Any]:
    """The values of a file with one JSON value a line; an incomplete last line is left out.

    Raises:
      ValueError: the file cannot be read.
    """
    try:
        lines = read_text(path, _MOST_BYTES).splitlines()
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError("it contains bytes that are not UTF-8") from error
    values = []
    for line in lines:
        try:
            values.append(parse_json(line))
        except ValueError:
            continue
    return values


def likelihood_rows(name: str, values: Any) -> list[tuple[str, ...]]:
    """Rows of the table for the content of one file; none where it holds no likelihoods."""
    if not isinstance(values, Mapping):
        return []
    cells, scores = values.get("cells"), values.get("scores")
    if _is_list(cells):  # a sweep
        return [_cell_row(name, cell) for cell in cells if isinstance(cell, Mapping) and "bits_per_dim" in cell]
    step = values.get("step", values.get("steps"))
    if _is_list(scores):  # several models on the same images
        rows = [_score_row(name, score, step) for score in scores if isinstance(score, Mapping)]
    elif isinstance(scores, Mapping):
        rows = [_score_row(name, scores, step)]
    else:
        rows = [_score_row(name, values, step)]
    return [row for row in rows if row is not None]


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _score_row(name: str, score: Mapping[str, Any], step: Any) -> tuple[str, ...] | None:
    """The row of the scores of one model; None where they contain no bits/dim."""
    bits, accuracy = score.get("bits_per_dim"), score.get("accuracy")
    if isinstance(bits, Mapping) and isinstance(bits.get("bits_per_dim"), Mapping):  # beside metrics of samples
        accuracy, bits = bits.get("accuracy"), bits["bits_per_dim"]
    if not isinstance(bits, Mapping):
        bits = {"mean": bits, "error": score.get("error"), "clips": score.get("clips")}
    if _number(bits.get("mean")) is None:
        return None
    images, clips = (bits.get(kind) for kind in ("images", "clips"))
    error = next((bits[key] for key in ("image_error", "clip_error", "error") if bits.get(key) is not None), None)
    scored = [score.get("model"), score.get("split") and f"{score['split']} images"]
    return (
        name,
        ", ".join(_word(part) for part in scored if part) or ("clips" if clips is not None else "images"),
        _word(step),
        _figure(bits.get("mean")),
        _figure(error),
        _word(images if clips is None else clips),
        _share(accuracy.get("mean")) if isinstance(accuracy, Mapping) else "-",
    )


def _cell_row(name: str, cell: Mapping[str, Any]) -> tuple[str, ...]:
    """The row of one cell of a sweep."""
    noise = f"{cell.get('sigma')}" if cell.get("noise") != "uniform" else "uniform"
    scored = f"{_word(cell.get('run'))}: {_word(cell.get('data'))}, noise {_word(noise)}"
    condition = cell.get("condition")
    return (
        name,
        scored if condition is None else f"{scored}, condition {_word(condition)}",
        _word(cell.get("step")),
        _figure(cell.get("bits_per_dim")),
        _figure(cell.get("example_error")),
        _word(cell.get("examples")),
        "-",
    )


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _figure(value: Any) -> str:
    number = _number(value)
    return "-" if number is None else f"{number:.4f}" if abs(number) < 1e5 else f"{number:.3e}"


def _share(value: Any) -> str:
    number = _number(value)
    return "-" if number is None else f"{100 * number:.1f} %"


def _word(value: Any) -> str:
    """Plain values in short; "-" for everything else."""
    return str(value)[:80] if isinstance(value, str | int | float) else "-"
