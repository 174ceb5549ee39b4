"""Counting updates that were skipped on the device because a gradient was not finite or too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Skips:
    """Skipped updates of one run.

    Attributes:
      total: all of them; in_a_row: those at the end; longest: the most in a row.
    """

    def __init__(self, total: int = 0):
        self.total = total
        self.in_a_row = self.longest = 0

    def count(self, calls: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Adds the metrics of some calls of the compiled program, oldest first; NaN where no update was made."""
        for call in calls:
            for skipped in np.asarray(call["skipped"]):
                if not np.isnan(skipped):
                    self.total += int(skipped)
                    self.in_a_row = self.in_a_row + 1 if skipped else 0
                    self.longest = max(self.longest, self.in_a_row)
