"""The loop of trainings that are not those of a flow: updates, rows of metrics, checkpoints, until the last step."""

from __future__ import annotations

import abc
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from starflow_jax.data import Loader
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.loop.metrics import MetricsWriter, average
from starflow_jax.training.loop.progress import Progress
from starflow_jax.training.loop.signals import StopRequests
from starflow_jax.training.step.train_step import TrainState


class Steps(Protocol):
    """The fields of `train` that the loop reads."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...


class BasicRun(abc.ABC):
    """Makes the updates of a run and measures their metrics; subclasses define one update.

    Attributes:
      train: number of updates and intervals.
      state: the training state; loader: the batches; step: number of updates made.
    """

    def __init__(self, train: Steps, state: TrainState, loader: Loader):
        self.train = train
        self.state = state
        self.loader = loader
        self.step = int(state.step)  # on the host, so that reading it does not wait for the device
        self._calls: list[Mapping[str, Any]] = []
        self._since: float | None = None  # the first update compiles and is not timed
        self._timed = 0  # updates since then

    @abc.abstractmethod
    def update(self, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Mapping[str, jax.Array]]:
        """The state after one update on a batch of the loader, and its metrics, scalars."""

    def derived(self, values: dict[str, float]) -> dict[str, float]:
        """A row of metrics with what is computed from the means over its updates."""
        return values

    def advance(self) -> None:
        """Makes one update."""
        self.state, metrics = self.update(next(self.loader))
        self._calls.append(metrics)
        self.step += 1
        if self._since is None:
            self.wait()
            self._since = time.perf_counter()
        else:
            self._timed += 1

    def measure(self) -> dict[str, float]:
        """Means over the updates since the last row; waits for the device."""
        calls = [{name: np.reshape(value, 1) for name, value in call.items()} for call in jax.device_get(self._calls)]
        values = average(calls)
        now = time.perf_counter()
        assert self._since is not None  # an update was made
        if self._timed:
            values["images_per_second"] = self._timed * self.train.batch_size / (now - self._since)
        self._calls, self._since, self._timed = [], now, 0
        return self.derived(values)

    def wait(self) -> None:
        """Returns when the device has finished all updates."""
        jax.block_until_ready(self.state.step)


def run_to_end(
    run: BasicRun, stop: StopRequests, checkpoints: Checkpoints, writer: MetricsWriter, bar: Progress
) -> tuple[Mapping[str, float], int]:
    """Runs to the last step or until a stop is requested.

    Returns:
      The last row of metrics, and the number of the signal that stopped the run, 0 for none.

    Raises:
      SaveFailed: a checkpoint could not be written.
    """
    train = run.train
    metrics: Mapping[str, float] = {}
    while run.step < train.steps:
        if stopped_by := stop.agreed(run.wait):
            checkpoints.save(run.state, run.loader.get_state(), wait=True)
            return metrics, stopped_by
        run.advance()
        bar.advance(1)
        last = run.step == train.steps
        if last or run.step % train.log_every == 0:
            metrics = run.measure()
            writer.write(run.step, metrics)
            bar.show(run.step, metrics)
        if last or run.step % train.checkpoint_every == 0:
            checkpoints.save(run.state, run.loader.get_state())
    return metrics, 0
