"""Examples that a run passed over because they could not be read, on all its processes."""

from __future__ import annotations

import json

from starflow_jax.data import Source
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.training.distributed.agreement import all_texts, total


class BadExamples:
    """Counts and names them. All processes of a run make the same calls.

    Args:
      source: of the run, which knows what was bad when it was opened.
      before: how many the run had met where it goes on.
    """

    def __init__(self, source: Source, before: int):
        self._opened: Skipped = getattr(source, "skipped", Skipped())
        self._before = before
        self._closed = Skipped()

    def at_opening(self) -> str | None:
        """What could not be used from the start, in a sentence; None for nothing."""
        if not self._opened.bad:
            return None
        name, reason = next(iter(self._opened.reasons.items()))
        return f"{self._opened.bad} files cannot be used and are skipped, such as {name}: {reason}"

    def close(self, read: Skipped) -> None:
        """Keeps what a loader met that is given up."""
        self._closed.merge(read)

    def count(self, read: Skipped) -> int:
        """How many the run has met in its batches, repeats included; `read` is of the loader in use."""
        return self._before + total(self._closed.bad + read.bad)

    def reasons(self, read: Skipped) -> dict[str, str]:
        """Why, by name, of the first hundred: when the data were opened, then in the batches of all processes."""
        found = Skipped()
        found.merge(self._opened)  # the same on every process
        for reasons in all_texts(json.dumps(self._closed.reasons | read.reasons)):
            found.name(json.loads(reasons))
        return found.reasons
