"""Counts updates that were skipped because a gradient was not finite or too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Skips:
    """Skipped updates of one run.

    Attributes:
      total: number of skipped updates; in_a_row: length of the current streak; longest: length of the longest streak.
    """

    def __init__(self, total: int = 0):
        self.total = total
        self.in_a_row = self.longest = 0

    def count(self, calls: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Adds the metrics of calls of the compiled program, oldest first; NaN where no update was made."""
        for call in calls:
            for skipped in np.asarray(call["skipped"]):
                if not np.isnan(skipped):
                    self.total += int(skipped)
                    self.in_a_row = self.in_a_row + 1 if skipped else 0
                    self.longest = max(self.longest, self.in_a_row)
