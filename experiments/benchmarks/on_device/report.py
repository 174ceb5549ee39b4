"""The JSON and the Markdown of a run, written whole after every row."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.figures import write_json
from starflow_jax.experiments.benchmarks.on_device.defaults import Default
from starflow_jax.experiments.benchmarks.on_device.rows import Row

_CELL = 1500
_INTERPRETED = (
    "Kernels were interpreted on a CPU, or lowered only: this run is a test of the command, and none of its times is "
    "one of an accelerator."
)


@dataclasses.dataclass(frozen=True)
class Report:
    """A run so far.

    Attributes:
      device: what `probe.py` wrote.
      interpreted: whether kernels were interpreted on a CPU.
      minutes: the limit of the run.
      rows: in the order in which they were run.
      defaults: which defaults should change; empty until the run ends.
      finished: whether every stage has had its turn.
    """

    device: Mapping[str, Any]
    interpreted: bool
    minutes: float
    rows: Sequence[Row] = ()
    defaults: Sequence[Default] = ()
    finished: bool = False

    def values(self) -> dict[str, Any]:
        """The run as plain values."""
        return {
            "device": dict(self.device),
            "interpreted": self.interpreted,
            "minutes": self.minutes,
            "finished": self.finished,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "left_out": left_out(self.device, self.rows),
            "defaults": [dataclasses.asdict(default) for default in self.defaults],
        }

    def markdown(self) -> str:
        """The run as a document: the device, one table, what was left out, and the defaults."""
        versions = ", ".join(f"{name} {version}" for name, version in self.device.get("versions", {}).items())
        lines = [
            f"# Kernels on {cell(str(self.device.get('kind', 'an unknown device')))}",
            "",
            f"{versions or 'versions unknown'}. Limit of the run: {self.minutes:g} minutes; "
            f"{'finished' if self.finished else '**not finished**'}; {counted(self.rows)}.",
            *(["", _INTERPRETED] if self.interpreted else []),
            "",
            "| stage | what | status | s | result |",
            "| --- | --- | --- | ---: | --- |",
        ]
        for row in self.rows:
            status = f"**{row.status}**" if row.failed else row.status
            lines.append(f"| {row.stage} | {cell(row.name)} | {status} | {row.seconds:.1f} | {cell(row.result)} |")
        absent = left_out(self.device, self.rows)
        if absent:
            lines += ["", "Left out:", "", *(f"- {cell(sentence)}" for sentence in absent)]
        if self.defaults:
            lines += ["", "Defaults:", ""]
            lines += [f"- **{one.verdict}** `{one.name}`: {cell(one.sentence)}" for one in self.defaults]
        return "\n".join([*lines, ""])

    def write(self, json: Path | None, markdown: Path | None) -> None:
        """Writes both files, each whole or not at all; missing folders are created."""
        if json is not None:
            write_json(json, self.values())
        if markdown is not None:
            markdown.parent.mkdir(parents=True, exist_ok=True)
            write_text(markdown, self.markdown())


def cell(text: str) -> str:
    """Text in one cell of a table: one line of bounded length, without the marks of Markdown's tables."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= _CELL else line[: _CELL - 1] + "…"


def counted(rows: Sequence[Row]) -> str:
    """How many rows have each status."""
    counts = Counter(row.status for row in rows)
    return ", ".join(f"{number} {status}" for status, number in counts.items()) or "no rows yet"


def left_out(device: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """What could not be compared on this machine, a sentence each."""
    sentences = [
        f"{way} {reason}." if reason.startswith(("is ", "runs ")) else f"{way}: {reason}."
        for row in rows
        for shape in (row.figures or {}).get("shapes", ())
        if isinstance(shape, Mapping)
        for way, reason in shape.get("missing", {}).items()
    ]
    if not device.get("torch", False):
        sentences = [sentence for sentence in sentences if not sentence.startswith("pytorch")]
        sentences.append("pytorch is not installed with CUDA, or sees no GPU.")
    return list(dict.fromkeys(sentences))
