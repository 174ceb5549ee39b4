"""Traces some updates for xprof and TensorBoard's profile plugin."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

PROFILE_FOLDER = "profile"


@dataclasses.dataclass(frozen=True)
class Window:
    """A range of updates to trace, from `first` to `last` inclusive, counted from 1."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    @classmethod
    def parse(cls, text: str) -> Window:
        """Parses "10:15".

        Raises:
          ValueError: another form, or a range that is empty.
        """
        first, _, last = text.partition(":")
        if first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last):
            return cls(int(first), int(last))
        raise ValueError(f"must be FIRST:LAST with 1 <= FIRST <= LAST, such as 10:15, got {text!r}")


class Profiler:
    """Traces a window of updates into `workdir/profile`.

    Calls of the compiled program end at the ends of the window (`room`), so that the trace contains complete calls and
    exactly the updates of the window.
    """

    def __init__(self, workdir: Path, window: Window | None):
        self.folder = Path(workdir) / PROFILE_FOLDER
        self.window = window
        self._active = False

    def room(self, step: int) -> int | None:
        """The largest number of updates after `step` that may go into one call; None for no limit."""
        if self.window is None or step >= self.window.last:
            return None
        return (self.window.first - 1 if step < self.window.first - 1 else self.window.last) - step

    def before(self, step: int) -> bool:
        """Whether to start the trace before the call that begins at `step`."""
        return self.window is not None and not self._active and self.window.first - 1 <= step < self.window.last

    def after(self, step: int) -> bool:
        """Whether to stop the trace after the call that ended at `step`."""
        return self.window is not None and self._active and step >= self.window.last

    def begin(self) -> None:
        """Starts the trace; the device should be idle."""
        jax.profiler.start_trace(str(self.folder))
        self._active = True

    def close(self) -> None:
        """Stops the trace if one is running."""
        if self._active:
            self._active = False
            jax.profiler.stop_trace()
