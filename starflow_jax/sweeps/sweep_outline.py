"""What a sweep would read, compute and write, without a parameter being read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from starflow_jax.core.amounts import size_text, time_text
from starflow_jax.core.outline import Outline
from starflow_jax.sweeps.grid import Plan
from starflow_jax.sweeps.results import Results, cell_names
from starflow_jax.sweeps.runner import check_folder


def sweep_outline(plan: Plan, out: Path) -> Outline:
    """The outline of what `run_sweep` would do with a plan in a folder.

    The time is that of the tokens at the mean speed of the finished cells in the folder, where there are any.

    Raises:
      ValueError: a folder that is not one of a sweep, or damaged results in it.
    """
    check_folder(out)
    results = Results(out, cell_names(plan))
    done = results.done - results.lost()
    todo = [cell for cell in plan.cells if cell.id not in done]
    rows, tokens = (sum(values) for values in ([cell.rows for cell in todo], [_tokens(cell) for cell in todo]))
    checkpoints = {id(cell.checkpoint): cell.checkpoint for cell in plan.cells}.values()
    data = {id(cell.data): cell.data for cell in plan.cells}.values()
    seconds = sum(row["seconds"] or 0.0 for row in results.rows)
    measured = sum(row["tokens"] for row in results.rows)
    left = tokens * seconds / measured if measured and seconds else None
    size = sum(cell.rows * (cell.columns + 1) * np.dtype(np.float64).itemsize for cell in todo)
    figures: dict[str, Any] = {
        "out": str(out),
        "cells": len(plan.cells),
        "cells_left": len(todo),
        "duplicates": plan.num_duplicates,
        "rows_left": rows,
        "tokens_left": tokens,
        "batch_size": plan.batch_size,
        "seconds_left": left,
        "most_bytes": size,
    }
    read = [
        (f"checkpoint: {one.run} step {one.step}", f"{one.parameters:,} parameters, {one.config.flow.family}")
        for one in checkpoints
    ]
    read += [
        (f"data: {one.name}", f"{len(one):,} of {'x'.join(map(str, one.shape))}, {', '.join(one.conditions)}")
        for one in data
    ]
    built = [
        ("cells", f"{len(todo):,} of {len(plan.cells):,}; {plan.num_duplicates} more repeat others"),
        ("rows (examples x draws)", f"{rows:,} in batches of {plan.batch_size:,}"),
        ("tokens", f"{tokens:,}"),
        ("time", "not known before a cell is done" if left is None else f"{time_text(left)} (finished cells' speed)"),
    ]
    written = [
        ("folder", str(out)),
        ("results.csv, results.jsonl", f"a row for each of {len(todo):,} cells"),
        ("examples/", f"{len(todo):,} files, at most {size_text(size)} before compression"),
    ]
    return Outline(tuple(read), tuple(built), tuple(written), figures)


def _tokens(cell: Any) -> int:
    return int(cell.rows * cell.data.dims // cell.checkpoint.config.flow.token_channels)
