"""The table of a sweep in the terminal: a row for each finished cell, and the progress of the current one."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from starflow_jax.sweeps.grid import Cell, Plan

_HEAD = (
    "cell",
    "run",
    "step",
    "data",
    "noise",
    "condition",
    "bits/dim",
    "s.e. data",
    "s.e. draws",
    "median",
    "tokens/s",
)
_EVERY = 0.2  # seconds between updates of the last line


class Silent:
    """A watcher that prints nothing."""

    def started(self, cell: Cell, rows: int) -> None:
        """See `sweeps.runner.Watcher`."""

    def advanced(self, cell: Cell, rows: int, seconds: float) -> None:
        """See `sweeps.runner.Watcher`."""

    def done(self, cell: Cell, row: dict[str, Any], *, before: bool) -> None:
        """See `sweeps.runner.Watcher`."""

    def failed(self, cell: Cell, sentence: str) -> None:
        """See `sweeps.runner.Watcher`."""

    def close(self) -> None:
        """Called after the last cell."""


class Table(Silent):
    """Writes the table to standard output; the line of progress only if it is a terminal.

    Args:
      plan: of the sweep; stream: to write to.
    """

    def __init__(self, plan: Plan, stream: TextIO | None = None):
        self._stream = sys.stdout if stream is None else stream
        self._live = self._stream.isatty()
        self._cells, self._num_finished, self._last_update = len(plan.cells), 0, 0.0
        self._tokens = 0
        self._widths = [
            max(7, len(f"{self._cells}/{self._cells}")),
            _width(cell.checkpoint.run for cell in plan.cells),
            max(4, _width(cell.checkpoint.step for cell in plan.cells)),
            _width(cell.data.name for cell in plan.cells),
            max(5, _width(cell.noise for cell in plan.cells)),
            max(9, _width(_condition(cell) for cell in plan.cells)),
            10, 10, 10, 10, 9,
        ]  # fmt: skip
        self._line(_HEAD)

    def started(self, cell: Cell, rows: int) -> None:
        """Shows the progress of the cell."""
        self._state(cell, rows, 0.0)

    def advanced(self, cell: Cell, rows: int, seconds: float) -> None:
        """Shows the progress of the cell at intervals."""
        if time.monotonic() - self._last_update >= _EVERY:
            self._state(cell, rows, seconds)

    def done(self, cell: Cell, row: dict[str, Any], *, before: bool) -> None:
        """Adds the row of the cell."""
        self._num_finished += 1
        values = (
            _format_number(row.get(name)) for name in ("bits_per_dim", "example_error", "draw_error", "median_bits")
        )
        rate = row.get("tokens_per_second")
        self._line((*self._names(cell), *values, "before" if before else "-" if rate is None else f"{rate:.0f}"))

    def failed(self, cell: Cell, sentence: str) -> None:
        """Adds a row with the reason."""
        self._num_finished += 1
        self._line((*self._names(cell), f"failed: {sentence}"))

    def close(self) -> None:
        """Removes the last line."""
        self._clear()

    def _names(self, cell: Cell) -> tuple[str, ...]:
        progress = f"{self._num_finished}/{self._cells}"
        names = (cell.checkpoint.run, str(cell.checkpoint.step), cell.data.name, str(cell.noise), _condition(cell))
        return (progress, *names)

    def _line(self, cells: tuple[str, ...]) -> None:
        self._clear()
        padded = [
            text.ljust(width) if column in (1, 3, 5) else text.rjust(width)
            for column, (text, width) in enumerate(zip(cells, self._widths, strict=False))
        ]
        self._stream.write("  ".join(padded).rstrip() + "\n")
        self._stream.flush()

    def _state(self, cell: Cell, rows: int, seconds: float) -> None:
        if not self._live:
            return
        self._last_update = time.monotonic()
        text = f"{self._num_finished + 1}/{self._cells}  {cell.name}: {rows} of {cell.rows} rows"
        self._clear()
        self._stream.write(text[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")


def _condition(cell: Cell) -> str:
    return cell.condition if cell.dtype == "float32" else f"{cell.condition} {cell.dtype}"


def _width(values: Any) -> int:
    return max(len(str(value)) for value in values)


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3e}"
