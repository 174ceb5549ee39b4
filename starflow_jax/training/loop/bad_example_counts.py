"""Counts and names the training examples that could not be read, over all processes of a run."""

from __future__ import annotations

import json

from starflow_jax.data import Source
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.training.distributed.agreement import gather_texts, total


class BadExamples:
    """Examples that a run skipped because they could not be read. All processes make the same calls.

    Args:
      source: training data, which list the files that were unusable when they were opened.
      before: number of bad examples recorded before the step that the run is resumed from.
    """

    def __init__(self, source: Source, before: int):
        self._opened: Skipped = getattr(source, "skipped", Skipped())
        self._before = before

    def at_opening(self) -> str | None:
        """One sentence about files that were unusable when the data were opened; None if there were none."""
        if not self._opened.bad:
            return None
        name, reason = next(iter(self._opened.reasons.items()))
        return f"{self._opened.bad} files cannot be used and are skipped, such as {name}: {reason}"

    def count(self, read: Skipped) -> int:
        """Number of bad examples in the batches of the run, repeats included; `read` is this process's share."""
        return self._before + total(read.bad)

    def reasons(self, read: Skipped) -> dict[str, str]:
        """Reasons by name, at most a hundred: those found at opening, then those of all processes' batches."""
        skipped = Skipped()
        skipped.merge(self._opened)  # the same on every process
        for reasons in gather_texts(json.dumps(read.reasons)):
            skipped.name(json.loads(reasons))
        return skipped.reasons
