"""Rows of metrics of a run, and the counts that last as long as the run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from starflow_jax.flows import bits_per_dim
from starflow_jax.training.loop.bad_example_counts import BadExamples
from starflow_jax.training.loop.metrics import MetricsWriter, average
from starflow_jax.training.loop.progress import Progress
from starflow_jax.training.loop.skipped_updates import Skips
from starflow_jax.training.loop.slowest_process import SlowestProcess
from starflow_jax.training.loop.speed import utilisation
from starflow_jax.training.loop.updates import Updates
from starflow_jax.training.step.train_step import learning_rate


class Records:
    """Measures, writes and shows the metrics of a run.

    Attributes:
      row: metrics of the current step, written once by `write`.
      metrics: the last row that was measured, empty before the first.
      skips, bad: skipped updates and unreadable examples of the whole run.
    """

    def __init__(self, updates: Updates, writer: MetricsWriter, bar: Progress, peak: float | None):
        self.row: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.skips = Skips(writer.skipped_before)
        self.bad = BadExamples(updates.setup.source, writer.bad_before)
        self._updates, self._writer, self._bar, self._peak = updates, writer, bar, peak
        self._written = -1  # the step of the last row written
        self._processes = SlowestProcess()
        captions = updates.setup.captions
        if captions is not None:  # missing ones are reported even where progress is not
            bar.remark(captions.sentence(), always=not captions.complete)
        for note in (*updates.setup.notes, self.bad.at_opening()):
            if note is not None:
                bar.remark(note)

    def advanced(self, count: int) -> None:
        """Begins the row of a new step, `count` updates later."""
        self.row = {}
        self._bar.advance(count)

    def add(self, values: Mapping[str, float] | None) -> None:
        """Adds scalars to the current row."""
        self.row |= values or {}

    def measure(self) -> None:
        """Adds the metrics since the last row to the current one: only this method waits for the device."""
        updates, config = self._updates, self._updates.setup.config
        calls = updates.fetch()
        count = sum(int(np.isfinite(call["skipped"]).sum()) for call in calls)
        values = average(calls)
        self.skips.count(calls)
        if config.data.noise == "uniform":
            values["bits_per_dim"] = objective_bits_per_dim(
                values["loss_z"] + values["loss_logdet"], updates.setup.source.levels
            )
        speed = updates.rate.row()
        slowest = self._processes.sentence(speed, count)
        if slowest is not None:
            self._bar.remark(slowest)
        values["skipped_updates"] = self.skips.total
        values["bad_examples"] = self.bad.count(updates.skipped)
        values["learning_rate"] = learning_rate(config).rate(updates.step)
        values["images_per_second"] = speed.images_per_second
        values["data_wait"] = speed.data_wait
        values["mfu"] = utilisation(speed.images_per_second, updates.flops / max(updates.images, 1), self._peak)
        updates.images, updates.flops = 0, 0.0
        self.metrics = values
        self.row |= values

    def write(self) -> None:
        """Writes and shows the row of this step once, if it has any metrics."""
        step = self._updates.step
        if self.row and self._written != step:
            self._writer.write(step, self.row)
            self._bar.show(step, self.row)
            self._written = step


def objective_bits_per_dim(objective: float, levels: int) -> float:
    """Bits/dim of uniformly dequantised data from the objective (nats per dimension, constants dropped)."""
    return bits_per_dim(-(objective + 0.5 * math.log(2 * math.pi)), dims=1, levels=levels)
