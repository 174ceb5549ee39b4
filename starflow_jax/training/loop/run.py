"""The training run: read batches, update, record, save; stop and go on at any update."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.experiment import ExperimentConfig
from starflow_jax.costs.flops import train_flops, work_of
from starflow_jax.costs.local_chip import peak_of
from starflow_jax.data import Loader, Source, train_loader
from starflow_jax.data.pipeline.fingerprint import fingerprint
from starflow_jax.flows import bits_per_dim
from starflow_jax.flows.parameters import abstract
from starflow_jax.sharding.layout import Layout
from starflow_jax.training.checkpoints.initial_state import (
    check_source,
    check_start,
    first_state,
    holds_parameters_alone,
)
from starflow_jax.training.checkpoints.manager import Checkpoints, abstract_state
from starflow_jax.training.checkpoints.resume import Policy, go_on
from starflow_jax.training.checkpoints.same_data import same_everywhere
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, claim_workdir, in_use
from starflow_jax.training.distributed.agreement import first_does
from starflow_jax.training.loop.bad_examples import BadExamples
from starflow_jax.training.loop.curves import plot_curves
from starflow_jax.training.loop.metrics import MetricsWriter, average
from starflow_jax.training.loop.profile import Profiler, Window
from starflow_jax.training.loop.progress import Progress
from starflow_jax.training.loop.signals import StopRequests, stop_requests
from starflow_jax.training.loop.skipped_updates import Skips
from starflow_jax.training.loop.speed import Rate, utilisation
from starflow_jax.training.loop.weights_and_biases import WandbRecorder
from starflow_jax.training.step.frozen_autoencoder import Frozen, open_with_encoder
from starflow_jax.training.step.frozen_text import FrozenText, open_text
from starflow_jax.training.step.inputs import first_frames, latent_shape, shortened
from starflow_jax.training.step.optimizer import Params
from starflow_jax.training.step.run_layout import run_layout
from starflow_jax.training.step.train_step import TrainState, learning_rate, train_steps


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
      interrupted: stopped before `config.train.steps`; the same call goes on.
      bad: what could not be read, and was passed over, when the data were opened and since then, on all processes, by
        name with the reason; the first 100.
      metrics: the last row of metrics, empty where none was due.
      images_per_second: mean rate without compilation and callbacks, NaN where one program call did it all.
      stopped_by: the number of the signal that stopped it, 0 for none.
      skips: updates that were skipped; `skips.longest` reached `config.train.max_skipped` where that stopped it.
    """

    step: int
    interrupted: bool
    metrics: Mapping[str, float]
    images_per_second: float
    stopped_by: int = 0
    skips: Skips = dataclasses.field(default_factory=Skips)
    bad: Mapping[str, str] = dataclasses.field(default_factory=dict)


def train(
    config: ExperimentConfig,
    workdir: Path | str,
    *,
    callbacks: Sequence[Callback] = (),
    evaluations: Sequence[Callback] = (),
    progress: bool = True,
    source: Source | None = None,
    resume: Policy = "latest",
    grace: float | None = None,
    profile: Window | None = None,
    wandb: str | None = None,
    peak: float | None = None,
    init_from: Path | str | None = None,
) -> TrainResult:
    """Trains, or goes on training, the experiment in `workdir`.

    The folder receives config.json, checkpoints/, metrics.csv, events/ (TensorBoard) and curves.png. A run
    that was stopped continues from its last checkpoint to exactly the parameters it would have reached
    unstopped. Ctrl-C and SIGTERM save a checkpoint and return: after the running call of the program
    (`steps_per_call` updates), or at once where a callback is running.

    Args:
      config: the experiment.
      workdir: empty, missing, or of a run of the same configuration.
      callbacks: called every `sample_every` updates and after the last; evaluations: every `evaluate_every`.
      progress: shows a progress bar, or lines where there is no terminal.
      source: images instead of those that `config.data` names.
      resume: which checkpoint to go on from, see `training.checkpoints.resume`.
      grace: seconds from SIGTERM to the end, at the latest; see `training.loop.signals`.
      profile: updates to trace into `workdir/profile`.
      wandb: a project of Weights & Biases that is told the metrics, too.
      init_from: folder of a run whose parameters a new run begins with; not looked at where the run has begun.
      peak: FLOP/s of all devices, for the utilisation in the metrics; None for what is published of them.

    Returns:
      How it ended.

    Raises:
      ValueError: images that do not fit the flow or are not those of the run so far, or a folder that is not this
        run's, cannot be written, or holds a damaged checkpoint.
      SaveFailed: a checkpoint could not be written.
    """
    workdir = Path(workdir)
    source, encoder = open_with_encoder(config, "train", source)
    text = open_text(config, source)
    layout = run_layout(config, source, encoder)
    if not (workdir / CHECKPOINT_FOLDER).is_dir():  # a folder is not claimed by what cannot start
        check_start(config)
        if init_from is not None:
            check_source(config, init_from)
    data = same_everywhere(fingerprint(source))
    first_does(lambda: claim_workdir(workdir, config, data), f"workdir {workdir}")
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests(grace))
        first_does(lambda: stack.enter_context(in_use(workdir)), f"workdir {workdir}")
        checkpoints = stack.enter_context(Checkpoints(workdir, config, data=data, write=True))
        progress_of_steps = Progress(config.name, config.train.steps, enabled=progress and first)
        ported = holds_parameters_alone(checkpoints)
        found = None
        if not ported:
            found = go_on(
                checkpoints,
                abstract_state(config, layout),
                lambda step: _loader(config, source, step, layout),
                resume,
                progress_of_steps.say if first else lambda _: None,
            )
        if found is not None:
            state, loader = found
        else:
            loader = _loader(config, source, 0, layout)
            state = first_state(config, workdir if ported else init_from, layout)
        start = int(state.step)
        bar = stack.enter_context(progress_of_steps.begun(start))
        writer = stack.enter_context(MetricsWriter(workdir, start, enabled=first))
        if wandb is not None and first:
            recorder = WandbRecorder(wandb, workdir, name=config.name, config=dataclasses.asdict(config))
            stack.callback(recorder.close)
            writer.also(recorder.write)
        profiler = Profiler(workdir, profile)
        stack.callback(profiler.close)
        run = _Run(config, workdir, source, layout, loader, state, checkpoints, writer, bar, profiler)
        run.callbacks, run.evaluations = callbacks, evaluations
        if unusable := run.bad.at_opening():
            bar.remark(unusable)
        run.encoder = None if encoder is None else encoder.over(layout)
        run.text = None if text is None else text.over(layout)
        run.peak = peak_of(jax.devices()) if peak is None else peak
        stack.callback(lambda: run.loader.close())
        return run.until(stop)


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

    def __init__(self, config, workdir, source, layout, loader, state, checkpoints, writer, bar, profiler):
        self.config: ExperimentConfig = config
        self.workdir: Path = workdir
        self.source: Source = source
        self.layout: Layout | None = layout
        self.loader = loader
        self.state: TrainState = state
        self.step = int(state.step)  # on the host, so that nothing waits for the device
        self.checkpoints: Checkpoints = checkpoints
        self.writer: MetricsWriter = writer
        self.bar: Progress = bar
        self.callbacks: Sequence[Callback] = ()
        self.evaluations: Sequence[Callback] = ()
        self.encoder: Frozen | None = None
        self.text: FrozenText | None = None
        self.profiler: Profiler = profiler
        self.images = self.flops = 0  # since the last row
        self.bad = BadExamples(source, writer.bad_before)
        self.peak: float | None = None
        self.calls: list[Mapping[str, Any]] = []
        self.row: dict[str, float] = {}  # figures of this very step
        self.written = -1  # the step of the last row written
        self.metrics: dict[str, float] = {}
        self.rate = Rate()
        self.skips = Skips(writer.skipped_before)
        self.compiled: set[Any] = set()  # kinds of batches that have a program

    def until(self, stop: StopRequests) -> TrainResult:
        """Runs to the last step, or until asked to stop, or until too many updates are skipped in a row."""
        train, stopped_by = self.config.train, 0
        try:
            while self.step < train.steps and not self.diverged():
                if stopped_by := stop.agreed(self.wait):
                    break
                self.advance()
                self.record(stop)
        except KeyboardInterrupt:
            # From a callback, or a second signal. Where it struck inside an update the state is gone, and the last
            # checkpoint is what there is; with other processes, they would not save with this one.
            if jax.process_count() > 1 or not _is_alive(self.state):
                raise
            stopped_by = stop.received or signal.SIGINT
        if self.calls:  # stopped between two rows
            self.row |= self.measure()
        self.write()
        self.save(wait=True)
        if jax.process_index() == 0:
            plot_curves(self.workdir)
        images_per_second = self.rate.total.images_per_second
        interrupted = self.step < train.steps
        bad = self.bad.reasons(self.loader.skipped)
        return TrainResult(self.step, interrupted, self.metrics, images_per_second, stopped_by, self.skips, bad)

    def advance(self) -> None:
        """One call of the compiled program: as many updates as fit before something else is due."""
        train = self.config.train
        end, frames, _ = train.stage(self.step)
        count = min(train.steps_per_call, end - self.step, *(every - self.step % every for every in self.due()))
        count = min(count, self.profiler.room(self.step) or count)
        kind = (frames, self.loader.peek().shapes)
        if kind not in self.compiled:  # the call compiles a program
            self.rate.restart()
        self.compiled.add(kind)
        batches: list[dict[str, np.ndarray]] = []
        if self.profiler.before(self.step):
            with self.rate.not_counting(self.wait):
                self.profiler.begin()
        with self.rate.waiting_for_data():
            while len(batches) < count and (frames, self.loader.peek().shapes) == kind:  # one call, one shape
                batches.append(first_frames(next(self.loader), frames))
        count = len(batches)
        batches += [batches[0]] * (train.steps_per_call - count)  # not used: they keep the shape
        stacked: Any = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        if self.layout is not None:
            stacked = {name: self.layout.assemble(rows, 1) for name, rows in stacked.items()}
        self.state, metrics = train_steps(
            self.config, self.source.levels, self.state, stacked, count, self.layout, self.encoder, self.text
        )
        self.calls.append(metrics)
        self.step += count
        self.row = {}
        self.bar.advance(count)
        images = stacked["image"].shape[1]
        self.images += count * images
        shape = latent_shape(None if self.encoder is None else self.encoder.autoencoder, stacked["image"].shape[2:])
        self.flops += count * train_flops(self.config.flow, work_of(self.config.flow, (images, *shape)))
        self.rate.made(count, images, self.wait)
        if self.profiler.after(self.step):
            with self.rate.not_counting(self.wait):
                self.profiler.close()
        if self.step == end < train.steps:
            # Before anything is saved, so that a checkpoint always holds the place in the data of what comes next.
            self.bad.close(self.loader.skipped)
            self.loader.close()
            self.loader = _loader(self.config, self.source, self.step, self.layout)

    def due(self) -> tuple[int, ...]:
        """After how many updates something happens that needs a whole call."""
        train = self.config.train
        every = (train.log_every, train.checkpoint_every, train.sample_every, train.evaluate_every)
        return tuple(updates for updates in every if updates)

    def record(self, stop: StopRequests) -> None:
        """After a call: metrics, callbacks, a checkpoint, whatever is due."""
        train = self.config.train
        last = self.step == train.steps
        save = self.step % train.checkpoint_every == 0 and not last
        sample = last or self.step % train.sample_every == 0
        evaluate = train.evaluate_every > 0 and (last or self.step % train.evaluate_every == 0)
        if last or self.step % train.log_every == 0:
            self.row |= self.measure()
        if sample or evaluate:
            try:
                with stop.interruptible():
                    self.call_back([*(self.callbacks if sample else ()), *(self.evaluations if evaluate else ())])
            except Exception:
                # What a callback does must not cost the run its progress.
                if save and jax.process_count() == 1:
                    self.save(wait=True)
                raise
        self.write()
        if save:
            self.save()
        if sample and jax.process_index() == 0:
            plot_curves(self.workdir)

    def measure(self) -> dict[str, float]:
        """Fetches the metrics since the last row: the one place that waits for the device."""
        calls = jax.device_get(self.calls)
        values = average(calls)
        self.calls = []
        self.skips.count(calls)
        self.rate.finished()
        if self.config.data.noise == "uniform":
            values["bits_per_dim"] = objective_bits_per_dim(
                values["loss_z"] + values["loss_logdet"], self.source.levels
            )
        speed = self.rate.row()
        values["skipped_updates"] = self.skips.total
        values["bad_examples"] = self.bad.count(self.loader.skipped)
        values["learning_rate"] = learning_rate(self.config).rate(self.step)
        values["images_per_second"] = speed.images_per_second
        values["data_wait"] = speed.data_wait
        values["mfu"] = utilisation(speed.images_per_second, self.flops / max(self.images, 1), self.peak)
        self.images = self.flops = 0
        self.metrics = values
        self.checkpoints.check()
        return values

    def diverged(self) -> bool:
        """Whether as many updates were skipped in a row as `max_skipped` allows; looked at with every row."""
        return 0 < self.config.train.max_skipped <= self.skips.longest

    def write(self) -> None:
        """Records the row of this step, if there is anything in it, once."""
        if self.row and self.written != self.step:
            self.writer.write(self.step, self.row)
            self.bar.show(self.step, self.row)
            self.written = self.step

    def save(self, wait: bool = False) -> None:
        """Saves the state with the loader's place."""
        with self.rate.not_counting(self.wait):
            self.checkpoints.save(self.state, self.loader.get_state(), metrics=self.row, wait=wait)

    def call_back(self, callbacks: Sequence[Callback]) -> None:
        """Calls callbacks and puts what they want recorded into the row."""
        params = self.state.params if self.state.ema is None else self.state.ema
        definition = abstract(self.config.flow, self.layout)[0]
        snapshot = Snapshot(self.config, self.workdir, self.source, self.step, definition, params)
        with self.rate.not_counting(self.wait):
            for callback in callbacks:
                self.row |= callback(snapshot) or {}

    def wait(self) -> None:
        """Returns when the device has done everything asked of it."""
        jax.block_until_ready(self.state.step)


def objective_bits_per_dim(objective: float, levels: int) -> float:
    """Bits/dim of uniformly dequantised data from the objective (nats a dimension, constants dropped)."""
    return bits_per_dim(-(objective + 0.5 * math.log(2 * math.pi)), dims=1, levels=levels)


def _is_alive(state: TrainState) -> bool:
    return not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
