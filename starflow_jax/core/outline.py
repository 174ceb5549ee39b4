"""What a command would do without doing it: rows of text in three parts, and the same as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


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


def byte_size(count: float) -> str:
    """A number of bytes in words, such as "4.0 MiB"."""
    power = 0
    while count >= 1024 and power < len(_UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.0f} B" if not power else f"{count:.1f} {_UNITS[power]}"


def duration(seconds: float) -> str:
    """A time in words, such as "4 min" or "2.5 days"."""
    for unit, size, least in (("days", 86400.0, 48 * 3600.0), ("h", 3600.0, 2 * 3600.0), ("min", 60.0, 120.0)):
        if seconds >= least:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
