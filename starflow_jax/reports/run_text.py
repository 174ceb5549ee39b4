"""The state of a run in words and rows of text, from the figures of `training.run_info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starflow_jax.core.amounts import size_text, time_text


def description(figures: Mapping[str, Any]) -> str:
    """What a run trains: its family, its number of parameters and how they are quantised, its data."""
    stored = f" as {figures['quantise']}, {size_text(figures['bytes'])}" if "quantise" in figures else ""
    return f"{figures['family']}, {count_text(figures['parameters'])}{stored}, data {figures['data']}"


def state(figures: Mapping[str, Any]) -> str:
    """How far a run is."""
    newest = "no complete checkpoint" if figures["step"] is None else f"newest complete checkpoint {figures['step']}"
    line = f"{figures['state']}: step {figures['reached']} of {figures['steps']}, {newest}"
    age = figures["seconds_since_last_row"]
    return line if age is None else f"{line}, last row {time_text(age)} ago"


def checkpoint_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A table of the checkpoints with its header; empty where there are none."""
    rows: list[tuple[str, ...]] = []
    for entry in figures["checkpoints"]:
        rows.append(
            (
                entry["name"],
                size_text(entry["bytes"]),
                "-" if entry["batches"] is None else str(entry["batches"]),
                " ".join(entry["parts"]) or "-",
                entry["problem"] or ", ".join(["complete", *entry["differences"]]),
            )
        )
    return [("checkpoint", "size", "batches read", "parts", "state"), *rows] if rows else []


def count_text(parameters: int | None) -> str:
    """A number of parameters, None for one that could not be counted."""
    if parameters is None:
        return "parameters unknown (the model that it belongs to is not where it was)"
    return f"{parameters:,} parameters"
