"""The training run: read batches, update, record, save; stop and go on at any update."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.config.experiment import ExperimentConfig
from starflow_jax.data import Loader, Source, train_loader
from starflow_jax.flows import bits_per_dim
from starflow_jax.flows.parameters import abstract
from starflow_jax.parallel.layout import Layout
from starflow_jax.parallel.mesh import check_fit, make_layout
from starflow_jax.training.checkpoint import Checkpoints, abstract_state
from starflow_jax.training.inputs import check_source, first_frames, open_source, shortened
from starflow_jax.training.metrics import MetricsWriter, ProgressBar, average
from starflow_jax.training.optimizer import Params
from starflow_jax.training.plots import plot_curves
from starflow_jax.training.step import TrainState, init_state, learning_rate, train_steps
from starflow_jax.training.workdir import claim_workdir


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run at one moment, for callbacks.

    Attributes:
      config, workdir, source: of the run; step: updates made.
      definition, params: of `flows.parameters.merge`: the running mean where the run keeps one. The next
        update reuses these buffers, so a callback that keeps them must copy them.
    """

    config: ExperimentConfig
    workdir: Path
    source: Source
    step: int
    definition: Any
    params: Params


# A callback may return scalars to record, such as {"held_out_bits_per_dim": 2.1}.
Callback = Callable[[Snapshot], Mapping[str, float] | None]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
      step: updates made in all, the step of the last checkpoint.
      interrupted: stopped by Ctrl-C or a termination signal before `config.train.steps`; the same call goes
        on.
      metrics: the last row of metrics, empty where none was due.
      images_per_second: mean rate without compilation and callbacks, NaN where one program call did it all.
    """

    step: int
    interrupted: bool
    metrics: Mapping[str, float]
    images_per_second: float


def train(
    config: ExperimentConfig,
    workdir: Path | str,
    *,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    source: Source | None = None,
) -> TrainResult:
    """Trains, or goes on training, the experiment in `workdir`.

    The folder receives config.json, checkpoints/, metrics.csv, events/ (TensorBoard) and curves.png. A run
    that was stopped continues from its last checkpoint to exactly the parameters it would have reached
    unstopped. Ctrl-C (or a termination signal) saves a checkpoint and returns.

    Args:
      config: the experiment.
      workdir: empty, missing, or of a run of the same configuration.
      callbacks: called every `sample_every` updates and after the last.
      progress: shows a progress bar.
      source: images instead of those that `config.data` names.

    Returns:
      How it ended.

    Raises:
      ValueError: images that do not fit the flow, or a folder that is not this run's, cannot be written, or
      holds
        a damaged checkpoint.
    """
    workdir = Path(workdir)
    source = open_source(config.data, "train", flow=config.flow) if source is None else source
    check_source(source, config.flow, config.text)
    layout = run_layout(config)
    claim_workdir(workdir, config)
    with Checkpoints(workdir, config, write=True) as checkpoints:
        latest = checkpoints.latest_step()
        if latest is None:
            loader = _loader(config, source, 0, layout)
            state = init_state(config, layout)
            if layout is None:  # put where a restored state lies too, so that both run the same compiled program
                state = jax.device_put(state, jax.local_devices()[0])
        else:
            like = abstract_state(config, layout)
            state, loader = checkpoints.resume(like, lambda step: _loader(config, source, step, layout))
        start = int(state.step)
        with (
            MetricsWriter(workdir, start) as writer,
            ProgressBar(config.name, config.train.steps, initial=start, enabled=progress) as bar,
            stop_requests() as stop_requested,
        ):
            run = _Run(config, workdir, source, layout, loader, state, checkpoints, writer, bar, callbacks)
            return run.until(stop_requested)


def run_layout(config: ExperimentConfig) -> Layout | None:
    """The layout that `config.mesh` asks for over all devices of all processes; None for one device.

    Raises:
      ValueError: axes that do not multiply to the devices, or a flow or batch that does not divide over them.
    """
    layout = make_layout(config.mesh)
    for size in {config.train.batch_size, *(size for _, _, size in config.train.curriculum)}:
        check_fit(layout, config.flow, size, config.train.accumulate)
    return layout


def _loader(config: ExperimentConfig, source: Source, step: int, layout: Layout | None) -> Loader:
    """This process's rows of the batches of the stage that update `step` is part of, from its beginning."""
    end, frames, batch_size = config.train.stage(step)
    # Each stage shuffles anew; the training proper as it would without stages before it.
    seed = config.seed if end == config.train.steps else (config.seed + end) % 2**32
    data = config.data
    return train_loader(
        shortened(source, frames),
        batch_size,
        seed,
        process=(0, 1) if layout is None else layout.share(),
        threads=data.threads,
        workers=data.workers,
        prefetch=data.prefetch,
    )


class _Run:
    """The moving parts of one call of `train`."""

    def __init__(self, config, workdir, source, layout, loader, state, checkpoints, writer, bar, callbacks):
        self.config: ExperimentConfig = config
        self.workdir: Path = workdir
        self.source: Source = source
        self.layout: Layout | None = layout
        self.loader = loader
        self.state: TrainState = state
        self.step = int(state.step)  # on the host, so that nothing waits for the device
        self.checkpoints: Checkpoints = checkpoints
        self.writer: MetricsWriter = writer
        self.bar: ProgressBar = bar
        self.callbacks: Sequence[Callback] = callbacks
        self.calls: list[Mapping[str, Any]] = []
        self.metrics: dict[str, float] = {}
        self.rate = _Rate()
        self.compiled = {config.train.stage(self.step)[1:]}  # frames and batch sizes that have a program

    def until(self, stop_requested: Callable[[], bool]) -> TrainResult:
        """Runs to the last step, or until asked to stop."""
        train = self.config.train
        try:
            while self.step < train.steps and not stop_requested():
                self.advance()
                last = self.step == train.steps
                row: dict[str, float] = {}
                if last or self.step % train.log_every == 0:
                    row |= self.measure()
                if self.step % train.checkpoint_every == 0 and not last:
                    self.save()
                if last or self.step % train.sample_every == 0:
                    row |= self.call_back()
                    self.write(row)
                    plot_curves(self.workdir)
                else:
                    self.write(row)
        except KeyboardInterrupt:
            # From a callback, or a second Ctrl-C. Where it struck inside an update the state is gone, and the
            # last checkpoint is what there is.
            if not _is_alive(self.state):
                raise
        if self.calls:  # stopped between two rows
            self.write(self.measure())
        self.save(wait=True)
        plot_curves(self.workdir)
        return TrainResult(self.step, self.step < train.steps, self.metrics, self.rate.images_per_second)

    def advance(self) -> None:
        """One call of the compiled program: as many updates as fit before something else is due."""
        train = self.config.train
        due = (train.log_every, train.checkpoint_every, train.sample_every)
        end, frames, batch_size = train.stage(self.step)
        count = min(train.steps_per_call, end - self.step, *(every - self.step % every for every in due))
        batches = [first_frames(next(self.loader), frames) for _ in range(count)]
        batches += [batches[0]] * (train.steps_per_call - count)  # not used: they keep the shape
        stacked: Any = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        if self.layout is not None:
            stacked = {name: self.layout.assemble(rows, 1) for name, rows in stacked.items()}
        self.state, metrics = train_steps(self.config, self.source.levels, self.state, stacked, count, self.layout)
        self.calls.append(metrics)
        self.step += count
        self.bar.advance(count)
        self.rate.made(count, batch_size, self.wait)
        if self.step == end < train.steps:
            # Before anything is saved, so that a checkpoint always holds the place in the data of what comes next.
            self.loader = _loader(self.config, self.source, self.step, self.layout)
            kind = train.stage(self.step)[1:]
            if kind not in self.compiled:
                self.rate.restart()
            self.compiled.add(kind)

    def measure(self) -> dict[str, float]:
        """Fetches the metrics since the last row: the one place that waits for the device."""
        values = average(jax.device_get(self.calls))
        self.calls = []
        self.rate.finished()
        if self.config.data.noise == "uniform":
            values["bits_per_dim"] = objective_bits_per_dim(
                values["loss_z"] + values["loss_logdet"], self.source.levels
            )
        values["learning_rate"] = learning_rate(self.config).rate(self.step)
        values["images_per_second"] = self.rate.images_per_second
        self.metrics = values
        self.bar.show(values)
        return values

    def write(self, row: Mapping[str, float]) -> None:
        """Records a row, if there is anything in it."""
        if row:
            self.writer.write(self.step, row)

    def save(self, wait: bool = False) -> None:
        """Saves the state with the loader's place."""
        with self.rate.not_counting(self.wait):
            self.checkpoints.save(self.state, self.loader.get_state(), wait=wait)

    def call_back(self) -> dict[str, float]:
        """Calls the callbacks and collects what they want recorded."""
        params = self.state.params if self.state.ema is None else self.state.ema
        definition = abstract(self.config.flow, self.layout)[0]
        snapshot = Snapshot(self.config, self.workdir, self.source, self.step, definition, params)
        values: dict[str, float] = {}
        with self.rate.not_counting(self.wait):
            for callback in self.callbacks:
                values |= callback(snapshot) or {}
        return values

    def wait(self) -> None:
        """Returns when the device has done everything asked of it."""
        jax.block_until_ready(self.state.step)


class _Rate:
    """Images a second, without the first call (which compiles) and without what is no training."""

    def __init__(self):
        self._pending = 0  # images asked for and not known to be done
        self._images = 0
        self._seconds = 0.0
        self._since: float | None = None

    def made(self, steps: int, batch_size: int, wait: Callable[[], Any]) -> None:
        """After a call that asked for `steps` updates; `wait` returns when they are done."""
        if self._since is None:
            wait()
            self._since = time.perf_counter()
        else:
            self._pending += steps * batch_size

    def restart(self) -> None:
        """Begins anew: the next call compiles."""
        self._pending = self._images = 0
        self._seconds, self._since = 0.0, None

    def finished(self) -> None:
        """When the device has done everything asked of it."""
        if self._since is not None:
            now = time.perf_counter()
            self._seconds += now - self._since
            self._images += self._pending
            self._since, self._pending = now, 0

    @contextmanager
    def not_counting(self, wait: Callable[[], Any]) -> Iterator[None]:
        """Leaves out the time of what is done inside."""
        wait()
        self.finished()
        yield
        if self._since is not None:
            self._since = time.perf_counter()

    @property
    def images_per_second(self) -> float:
        return self._images / self._seconds if self._images else math.nan


def objective_bits_per_dim(objective: float, levels: int) -> float:
    """Bits/dim of uniformly dequantised data from the objective (nats a dimension, constants dropped)."""
    return bits_per_dim(-(objective + 0.5 * math.log(2 * math.pi)), dims=1, levels=levels)


def _is_alive(state: TrainState) -> bool:
    return not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGINT or SIGTERM came.

    Between updates is the only place to stop without losing the state, so the first signal is only noted; a
    second of either kind raises KeyboardInterrupt. Outside the main thread signals cannot be caught and are left
    alone.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
