"""Updates of a run: batches from the loader, through the compiled program, to a new training state."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np

from starflow_jax.data import Loader
from starflow_jax.data.decoding.bad_examples import Skipped
from starflow_jax.training.loop.goodput import TimeAccount
from starflow_jax.training.loop.profile import Profiler
from starflow_jax.training.loop.speed import Rate
from starflow_jax.training.loop.training_setup import Setup
from starflow_jax.training.step.inputs import first_frames
from starflow_jax.training.step.optimizer import Params
from starflow_jax.training.step.train_step import TrainState, train_steps


class Updates:
    """Makes the updates of a run.

    Attributes:
      state: the training state; loader: of the current curriculum stage.
      step: number of updates made, on the host so that reading it does not wait for the device.
      rate: measures speed; images, flops: number of images, and model FLOPs, since the last `fetch`.
    """

    def __init__(self, setup: Setup, state: TrainState, loader: Loader, profiler: Profiler, account: TimeAccount):
        self.setup = setup
        self.state = state
        self.loader = loader
        self.step = int(state.step)
        self.rate = Rate()
        self.images = 0
        self.flops = 0.0
        self._profiler, self._account = profiler, account
        self._calls: list[Mapping[str, Any]] = []  # metrics on the device
        self._compiled: set[Any] = set()  # kinds of batches that the program is compiled for
        self._skipped = Skipped()  # by the loaders of earlier stages

    @property
    def pending(self) -> bool:
        """Whether updates were made since the last `fetch`."""
        return bool(self._calls)

    @property
    def skipped(self) -> Skipped:
        """Examples that this process could not read and skipped."""
        skipped = Skipped()
        skipped.merge(self._skipped)
        skipped.merge(self.loader.skipped)
        return skipped

    @property
    def params(self) -> Params:
        """The exponential moving average of the parameters, or the parameters where the run keeps none."""
        return self.state.params if self.state.ema is None else self.state.ema

    def advance(self) -> int:
        """Calls the compiled program once; returns the number of updates made.

        A call ends where metrics, callbacks, a checkpoint, a profile or another stage are due, or where the shape of
        the batches changes.
        """
        train = self.setup.config.train
        end, frames, _ = train.stage(self.step)
        kind = (frames, self.loader.peek().shapes)
        compiles = kind not in self._compiled
        if compiles:
            self.rate.restart()
        self._compiled.add(kind)
        if self._profiler.before(self.step):
            with self.not_counting():
                self._profiler.begin()
        batches: list[dict[str, np.ndarray]] = []
        with self._account.within("data"), self.rate.waiting_for_data():
            size = self._largest_call(end)
            while len(batches) < size and (frames, self.loader.peek().shapes) == kind:
                batches.append(first_frames(next(self.loader), frames))
        count = len(batches)
        batches += [batches[0]] * (train.steps_per_call - count)  # unused, they pad the call to a constant shape
        with self._account.within("compile" if compiles else "step"):
            self._call(batches, count)
        if self._profiler.after(self.step):
            with self.not_counting():
                self._profiler.close()
        if self.step == end < train.steps:
            # Before anything is saved: a checkpoint holds the position in the data of the next stage.
            self._skipped.merge(self.loader.skipped)
            self.loader.close()
            self.loader = self.setup.loader(self.step)
        return count

    def _largest_call(self, end: int) -> int:
        """Number of updates that may go into the next call; `end` is the last update of the stage."""
        train = self.setup.config.train
        intervals = (train.log_every, train.checkpoint_every, train.sample_every, train.evaluate_every)
        due = (every - self.step % every for every in intervals if every)
        count = min(train.steps_per_call, end - self.step, *due)
        return min(count, self._profiler.room(self.step) or count)

    def _call(self, batches: list[dict[str, np.ndarray]], count: int) -> None:
        """Makes `count` updates on the first of `batches`."""
        setup = self.setup
        stacked: Any = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        if setup.layout is not None:
            stacked = {name: setup.layout.assemble(rows, 1) for name, rows in stacked.items()}
        self.state, metrics = train_steps(
            setup.config, setup.source.levels, self.state, stacked, count, setup.layout, setup.encoder, setup.text
        )
        self._calls.append(metrics)
        self.step += count
        batch = stacked["image"].shape[1:]
        self.images += count * batch[0]
        self.flops += count * setup.flops(batch)
        self.rate.made(count, batch[0], self.wait)

    def fetch(self) -> list[dict[str, np.ndarray]]:
        """The metrics of all calls since the last `fetch`, on the host; waits for the device."""
        calls, self._calls = jax.device_get(self._calls), []
        self.rate.finished()
        return calls

    def not_counting(self) -> AbstractContextManager[None]:
        """Leaves the time spent inside out of the measured speed; waits for the device first."""
        return self.rate.not_counting(self.wait)

    def wait(self) -> None:
        """Returns when the device has finished all updates."""
        jax.block_until_ready(self.state.step)

    def is_intact(self) -> bool:
        """Whether the training state can be saved: no update was interrupted while it reused the buffers."""
        return not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state))

    def close(self) -> None:
        """Closes the loader."""
        self.loader.close()
