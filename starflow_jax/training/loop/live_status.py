"""What a running training says of itself: the last metrics, its speed, its health; read by other threads."""

from __future__ import annotations

import collections
import math
import statistics
import time
from collections.abc import Callable, Mapping

from starflow_jax.training.loop.goodput import GoodputRecord, TimeAccount

# Phases in which the loop makes progress at short intervals.
_BUSY = ("step", "data")


class LiveStatus:
    """The state of a run as other threads may read it at any moment.

    The loop replaces whole values and never changes one in place, so that a reader needs no lock.

    Args:
      steps: number of updates of the whole run; first_step: number of updates at the start.
      account: of the time of this attempt; goodput: of the whole run.
      clock: returns seconds that never decrease.

    Attributes:
      step: number of updates dispatched; row_updates: number of updates between the last two rows of metrics.
    """

    def __init__(
        self,
        steps: int,
        first_step: int,
        account: TimeAccount,
        goodput: GoodputRecord,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.account, self.step = account, first_step
        self._steps, self._goodput, self._clock = steps, goodput, clock
        self._metrics: Mapping[str, float] = {}
        self._row = (first_step, clock())  # step and time of the last row of metrics
        self.row_updates = 1
        self._seconds_per_update: collections.deque[float] = collections.deque(maxlen=32)
        self._saving: tuple[int, float] | None = None
        self._saved: tuple[int, float] | None = None

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes a row of metrics, for which the device has finished all updates."""
        now, (before, since) = self._clock(), self._row
        if step > before:
            self._seconds_per_update.append((now - since) / (step - before))
            self.row_updates = step - before
        self._metrics, self._row, self.step = {**self._metrics, **metrics}, (step, now), step

    def evaluated(self, values: Mapping[str, float]) -> None:
        """Notes scalars of callbacks, such as those of held-out data."""
        self._metrics = {**self._metrics, **values}

    def save_begun(self, step: int) -> None:
        """Notes that a checkpoint has begun to be written; it counts when `save_finished` is called."""
        self._saving = (step, self._clock())

    def save_finished(self) -> None:
        """Notes that no checkpoint is being written any more."""
        self._saved = self._saving

    @property
    def row_seconds(self) -> float | None:
        """The median time of the updates between two rows of metrics; None before the second row."""
        times = list(self._seconds_per_update)[1:]  # the first contains compilation
        return statistics.median(times) * self.row_updates if times else None

    def is_busy(self) -> bool:
        """Whether the loop makes updates: it neither compiles, saves, restores, samples nor evaluates."""
        return self.account.phase in _BUSY

    def figures(self) -> dict[str, float]:
        """Current figures by name, without those that are unknown."""
        row = self.row_seconds
        figures = {
            "step": float(self.step),
            "steps": float(self._steps),
            "seconds_since_progress": self.account.since_change,
            "seconds_left": math.nan if row is None else (self._steps - self.step) * row / self.row_updates,
            "goodput": self._goodput.current(self.step).share,
            **self._metrics,
        }
        if self._saved is not None:
            figures["checkpoint_step"], saved = float(self._saved[0]), self._saved[1]
            figures["checkpoint_age_seconds"] = self._clock() - saved
        return {name: value for name, value in figures.items() if math.isfinite(value)}
