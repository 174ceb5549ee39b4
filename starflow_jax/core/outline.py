"""What a command would do without doing it: rows of text in three parts, and the same as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Outline:
    """The outline of a command.

    Attributes:
      read, built, written: names and descriptions of what the command would read, build in memory, and write.
      figures: the same as plain values, for JSON.
    """

    read: tuple[tuple[str, str], ...]
    built: tuple[tuple[str, str], ...]
    written: tuple[tuple[str, str], ...]
    figures: Mapping[str, Any]

    def text(self) -> str:
        """Lines of three columns."""
        parts = (("reads", self.read), ("builds", self.built), ("writes", self.written))
        width = max(len(name) for _, entries in parts for name, _ in entries)
        lines = []
        for part, entries in parts:
            for index, (name, value) in enumerate(entries):
                lines.append(f"{'' if index else part:<8}{name:<{width}}  {value}".rstrip())
        return "\n".join(lines)
