"""Output of numbers: strict JSON for programs, and aligned Markdown tables for readers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.storage.places import shown


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes plain values atomically as indented JSON; non-finite numbers become null.

    Missing parent folders are created. Local copies of what lies in stores are named by their addresses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(_with_addresses(finite(values)), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Converts nested plain values to JSON types: tuples become lists, and non-finite numbers become None."""
    if isinstance(value, Mapping):
        return {str(name): finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_addresses(value: Any) -> Any:
    """Plain values with addresses in place of the paths of local copies."""
    if isinstance(value, dict):
        return {name: _with_addresses(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_addresses(inner) for inner in value]
    return shown(value) if isinstance(value, str) else value


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns; the first row is the header, and the first column holds names."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])
