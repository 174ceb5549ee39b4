"""Speed of a run: images per second, share of time spent waiting for data, model FLOPs utilisation."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Speed:
    """Speed over a period of time.

    Attributes:
      images: number of training images; seconds: duration; waited: seconds of those spent waiting for the loader.
    """

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Images per second; NaN if nothing was measured."""
        return self.images / self.seconds if self.images else math.nan

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting for data, 0 to 1; NaN if nothing was measured."""
        return self.waited / self.seconds if self.images else math.nan


class Rate:
    """A stopwatch that excludes the first call, which compiles, and everything but training."""

    def __init__(self):
        self.total = self._row = Speed()
        self._pending = 0  # images dispatched and not known to be finished
        self._waited = 0.0
        self._since: float | None = None

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for the loader."""
        start = time.perf_counter()
        yield
        if self._since is not None:
            self._waited += time.perf_counter() - start

    def made(self, steps: int, batch_size: int, wait: Callable[[], Any]) -> None:
        """Notes a dispatched call of `steps` updates; `wait` returns when they are finished."""
        if self._since is None:
            wait()
            self._since = time.perf_counter()
        else:
            self._pending += steps * batch_size

    def restart(self) -> None:
        """Starts again: the next call compiles."""
        self.total = self._row = Speed()
        self._pending, self._waited, self._since = 0, 0.0, None

    def finished(self) -> None:
        """Notes that the device has finished all dispatched calls."""
        if self._since is not None:
            now = time.perf_counter()
            self.total, self._row = (
                Speed(
                    speed.images + self._pending,
                    speed.seconds + now - self._since,
                    speed.waited + self._waited,
                )
                for speed in (self.total, self._row)
            )
            self._since, self._pending, self._waited = now, 0, 0.0

    def row(self) -> Speed:
        """The speed since the last call of `row`."""
        row, self._row = self._row, Speed()
        return row

    @contextlib.contextmanager
    def not_counting(self, wait: Callable[[], Any]) -> Iterator[None]:
        """Excludes the time spent inside."""
        wait()
        self.finished()
        yield
        if self._since is not None:
            self._since = time.perf_counter()


def utilisation(images_per_second: float, flops_per_image: float, peak: float | None) -> float:
    """Model FLOPs utilisation, 0 to 1: the model's FLOPs as a share of the peak of the devices.

    Args:
      flops_per_image: of the forward and backward pass of one image or clip, recomputation not counted.
      peak: FLOP/s of all devices together; None gives NaN.
    """
    if peak is None:
        return math.nan
    return images_per_second * flops_per_image / peak
