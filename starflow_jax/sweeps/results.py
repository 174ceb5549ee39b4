"""Results of a sweep on disk: one row for each cell, appended when the cell is done, and values of every example.

    sweep.json        the configuration and its cells
    results.jsonl     one JSON object for each cell, in the order in which cells were done
    results.csv       the same as a table, with the names of the configuration: one row for each name of a cell
    examples/ID.npz   log p of every example and draw, its terms, and log p of every frame
    cells/ID.chunks   results of an unfinished cell (`chunk_file`)
    failures.json     cells that failed, with the errors

Lines are appended to results.jsonl, each flushed to disk before the next cell begins; an incomplete last line is
ignored when reading. Other files are replaced atomically.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.atomic_writing import replacing, write_text
from starflow_jax.core.figures import finite, write_json
from starflow_jax.core.regular_files import parse_json, read_text
from starflow_jax.data import bits_per_dim
from starflow_jax.evaluation.likelihood.image_likelihood import standard_error
from starflow_jax.sweeps.chunk_file import Computed
from starflow_jax.sweeps.grid import Cell, Plan

PLAN_FILE, RESULTS_FILE, TABLE_FILE, FAILURES_FILE = "sweep.json", "results.jsonl", "results.csv", "failures.json"
CELLS_FOLDER, EXAMPLES_FOLDER = "cells", "examples"

_TABLE_EVERY = 5.0  # seconds between rewrites of the table, which would dominate the time of many small cells
COLUMNS = (
    "cell", "run", "step", "parameters", "data", "role", "noise", "sigma", "condition", "dtype", "examples", "draws",
    "dims", "levels", "unit", "bits_per_dim", "example_error", "draw_error", "median_bits", "not_finite",
    "nats_per_dim", "prior_bits", "logdet_bits", "frame_bits", "frame_errors", "raw_bits_per_dim", "tokens", "seconds",
    "tokens_per_second",
)  # fmt: skip


@np.errstate(invalid="ignore", over="ignore")  # overflows are counted in `not_finite`
def result_row(cell: Cell, computed: Computed) -> dict[str, Any]:
    """The row of a finished cell.

    bits/dim are those of `flows.bits.bits_per_dim` for data of `levels` levels (uniform noise: of the integers, an
    upper bound; Gaussian noise: the density of the noisy data with the same constant, docs/sweeps.md). Of latents they
    are -log2 of the density for each latent dimension. The terms of the prior and of every block have the same unit and
    add up to bits/dim with the constant log2(levels / 2). Where a log-likelihood is not finite (data of extremely low
    density) means are None, and the median over examples describes most of them.
    """
    data, blocks = cell.data, cell.checkpoint.config.flow.num_blocks
    shape = (len(data), cell.draws)
    log_prob = computed.values[:, : 1 + blocks].sum(axis=1).reshape(shape)
    bits = in_bits(log_prob, data.dims, 0 if data.on_latents else data.levels)
    by_example = bits.mean(axis=1)
    terms = -computed.values[:, : 1 + blocks].mean(axis=0) / (data.dims * math.log(2.0))
    frames = _frames(cell, computed)
    tokens = cell.rows * data.dims // cell.checkpoint.config.flow.token_channels
    raw = None if data.log_scale is None else float(bits.mean()) - data.log_scale / math.log(2.0)
    flow = cell.checkpoint
    row = {
        "cell": cell.id,
        "run": flow.run,
        "step": flow.step,
        "parameters": flow.parameters,
        "data": data.name,
        "role": data.role,
        "noise": cell.noise.kind,
        "sigma": cell.noise.sigma,
        "condition": cell.condition,
        "dtype": cell.dtype,
        "examples": len(data),
        "draws": cell.draws,
        "dims": data.dims,
        "levels": 0 if data.on_latents else data.levels,
        "unit": "bits/latent dim" if data.on_latents else "bits/dim",
        "bits_per_dim": float(bits.mean()),
        "example_error": standard_error(by_example),
        "draw_error": standard_error(bits.mean(axis=0)),
        "median_bits": float(np.median(np.nan_to_num(by_example, nan=math.inf, posinf=math.inf))),
        "not_finite": int(np.sum(~np.isfinite(log_prob))),
        "nats_per_dim": float(log_prob.mean() / data.dims),
        "prior_bits": float(terms[0]),
        "logdet_bits": [float(term) for term in terms[1:]],
        "frame_bits": [float(mean) for mean in frames.mean(axis=0)] if frames.size else [],
        "frame_errors": [standard_error(frame) for frame in frames.T] if frames.size else [],
        "raw_bits_per_dim": raw,
        "tokens": tokens,
        "seconds": computed.seconds,
        "tokens_per_second": tokens / computed.seconds if computed.seconds > 0 else None,
    }
    assert tuple(row) == COLUMNS
    return finite(row)


def _frames(cell: Cell, computed: Computed) -> np.ndarray:
    """Bits/dim of every frame given earlier frames, [examples, T], averaged over draws; empty without frames."""
    if not cell.frames:
        return np.zeros((0, 0))
    data = cell.data
    nats = computed.values[:, -cell.frames :].reshape(len(data), cell.draws, cell.frames).mean(axis=1)
    return in_bits(nats, data.dims // cell.frames, 0 if data.on_latents else data.levels)


def in_bits(nats: np.ndarray, dims: int, levels: int) -> np.ndarray:
    """Log densities as bits/dim of data of so many levels; with 0 levels, -log2 of the density for each dimension."""
    return bits_per_dim(nats, dims, levels) if levels else -nats / (dims * math.log(2.0))


class Results:
    """The rows of a folder, in memory and on disk. A context manager that writes the table when it ends.

    Args:
      out: the folder; cells: of the plan, for their names in the table.

    Raises:
      ValueError: a file with lines that are not rows, other than an incomplete last line.
    """

    def __init__(self, out: Path, cells: Sequence[Mapping[str, Any]] = ()):
        self._out, self._cells, self._written = out, cells, 0.0
        lines, self.incomplete = _lines(out / RESULTS_FILE)
        # A cell that was computed again has two rows, of which the last is valid.
        rows = {row["cell"]: row for row in map(json.loads, lines)}
        self.rows: list[dict[str, Any]] = list(rows.values())
        self.done = set(rows)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        if self._written:  # only process 0 calls `repair` and writes
            self._write_table()

    def lost(self) -> set[str]:
        """The ids of finished cells whose examples cannot be read, which are computed again."""
        return {cell["cell"] for cell in self._cells if cell["cell"] in self.done and not _is_whole(self._out, cell)}

    def repair(self) -> None:
        """Removes rows whose examples cannot be read, drops an incomplete line, and writes the table."""
        lost = self.lost()
        if lost:
            self.rows = [row for row in self.rows if row["cell"] not in lost]
            self.done -= lost
        if lost or self.incomplete:
            lines = [json.dumps(row, allow_nan=False) + "\n" for row in self.rows]
            write_text(self._out / RESULTS_FILE, "".join(lines))
        self._write_table()

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a row and flushes it to disk; the cell must not have a row yet.

        Raises:
          OSError: for example a full disk; the line is then incomplete, and `repair` drops it.
        """
        assert row["cell"] not in self.done
        line = memoryview((json.dumps(row, allow_nan=False) + "\n").encode())
        file = os.open(self._out / RESULTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            while line:
                line = line[os.write(file, line) :]
            os.fsync(file)
        finally:
            os.close(file)
        self.rows.append(dict(row))
        self.done.add(row["cell"])
        if time.monotonic() - self._written > _TABLE_EVERY:
            self._write_table()

    def _write_table(self) -> None:
        names: dict[str, list[Mapping[str, Any]]] = {}
        for cell in self._cells:
            names.setdefault(cell["cell"], []).append(cell)
        rows = [{**row, **name} for row in self.rows for name in names.get(row["cell"], [{}])]
        write_text(self._out / TABLE_FILE, table(rows))
        self._written = time.monotonic()


def _is_whole(out: Path, cell: Mapping[str, Any]) -> bool:
    try:
        read_examples(out, cell["cell"])
    except ValueError:
        return False
    return True


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV; lists are numbers separated by spaces, None is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        cells = [row.get(name) for name in COLUMNS]
        writer.writerow([" ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in cells])
    return text.getvalue()


def read_results(out: Path | str) -> list[dict[str, Any]]:
    """The rows of the cells of the configuration that the sweep was last run with, without an incomplete last line.

    Runs, steps and data have the names and roles of that configuration, which may differ from those when they were
    scored; a cell with several names has a row for each.

    Raises:
      ValueError: no sweep in the folder, or damaged files.
    """
    rows = Results(Path(out)).rows
    cells = read_plan(Path(out))["cells"]
    by_id = {row["cell"]: row for row in rows}
    return [by_id[names["cell"]] | names for names in cells if names["cell"] in by_id]


def write_plan(out: Path, plan: Plan) -> None:
    """Writes `sweep.json`: the configuration, and its cells with the names they have in it."""
    write_json(out / PLAN_FILE, {"config": dataclasses.asdict(plan.config), "cells": cell_names(plan)})


def cell_names(plan: Plan) -> list[dict[str, Any]]:
    """The id and the names of every requested cell."""
    return [
        {
            "cell": cell.id,
            "run": cell.checkpoint.run,
            "step": cell.checkpoint.step,
            "data": cell.data.name,
            "role": cell.data.role,
        }
        for cell in plan.named
    ]


def read_plan(out: Path) -> dict[str, Any]:
    """The content of `sweep.json`.

    Raises:
      ValueError: the file is missing, or is not the plan of a sweep.
    """
    path = out / PLAN_FILE
    try:
        plan = parse_json(read_text(path))
    except OSError as error:
        raise ValueError(f"{out} contains no sweep: {PLAN_FILE} {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON") from error
    cells = plan.get("cells") if isinstance(plan, dict) and isinstance(plan.get("config"), dict) else None
    if not isinstance(cells, list) or not all(map(_is_name, cells)):
        raise ValueError(f"{path} is not a plan of a sweep")
    return plan


def _is_name(cell: Any) -> bool:
    """Whether a value is an entry of `cell_names`."""
    kinds = {"cell": str, "run": str, "step": int, "data": str, "role": str}
    if not isinstance(cell, dict) or cell.keys() != kinds.keys():
        return False
    return all(isinstance(cell[name], kind) for name, kind in kinds.items())


def read_failures(out: Path) -> dict[str, str]:
    """The errors of cells that failed when the sweep was last run, by name.

    Raises:
      ValueError: no sweep in the folder, or a damaged file.
    """
    read_plan(out)
    path = out / FAILURES_FILE
    if not path.is_file():
        return {}
    try:
        failures = parse_json(read_text(path))["failures"]
        return {str(failure["name"]): str(failure["sentence"]) for failure in failures}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} does not say which cells failed") from error


@np.errstate(invalid="ignore", over="ignore")
def write_examples(out: Path, cell: Cell, computed: Computed) -> None:
    """Writes the values of all examples of a cell, whole or not at all."""
    blocks = cell.checkpoint.config.flow.num_blocks
    shape = (len(cell.data), cell.draws, -1)
    terms = computed.values[:, : 1 + blocks].reshape(shape)
    frames = computed.values[:, 1 + blocks :].reshape(shape) if cell.frames else np.zeros((*shape[:2], 0))
    with replacing(out / EXAMPLES_FOLDER / f"{cell.id}.npz") as temporary:
        np.savez(temporary, log_prob=terms.sum(axis=2), terms=terms, frames=frames)


def read_examples(out: Path | str, cell: str) -> dict[str, np.ndarray]:
    """The values of all examples of a cell.

    Returns:
      `log_prob` float64 [examples, draws], nats; `terms` [examples, draws, 1 + K], of prior and blocks, which add up
      to it; `frames` [examples, draws, T], log p of each frame given earlier frames, T = 0 without frames.

    Raises:
      ValueError: no such cell, or a damaged file.
    """
    path = Path(out) / EXAMPLES_FOLDER / f"{cell}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in ("log_prob", "terms", "frames")}
    except Exception as error:  # a damaged zip file raises anything
        raise ValueError(f"{path} cannot be read: {str(error).partition(chr(10))[0]}") from error


def _lines(path: Path) -> tuple[list[str], bool]:
    """The complete lines of a file, and whether an incomplete line follows."""
    if not path.is_file():
        return [], False
    *complete, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for index, line in enumerate(complete, 1):
        try:
            good = set(COLUMNS) <= set(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            good = False
        if not good:
            raise ValueError(f"{path} line {index} is not a result of a sweep, or has another version")
    return complete, bool(rest)
