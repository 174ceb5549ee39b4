"""The training run: updates, metrics, callbacks and checkpoints; it can stop and resume at any update."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.storage.addresses import is_address
from starflow_jax.core.storage.working_folder import working_folder
from starflow_jax.costs.local_chip import local_peak
from starflow_jax.data import Loader
from starflow_jax.data.pipeline.fingerprint import SourceFingerprint, fingerprint
from starflow_jax.flows.parameters import abstract
from starflow_jax.training.checkpoints.initial_state import (
    check_source,
    check_start,
    first_state,
    holds_parameters_alone,
)
from starflow_jax.training.checkpoints.manager import Checkpoints, abstract_state
from starflow_jax.training.checkpoints.resume import restore_newest
from starflow_jax.training.checkpoints.same_data import same_everywhere
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, claim_workdir, in_use, with_recorded
from starflow_jax.training.distributed.agreement import on_first_process
from starflow_jax.training.hosts.joined_folder import host_folder
from starflow_jax.training.loop.callbacks import Callback, Snapshot
from starflow_jax.training.loop.curves import plot_curves
from starflow_jax.training.loop.goodput import GoodputRecord, TimeAccount
from starflow_jax.training.loop.live_status import LiveStatus
from starflow_jax.training.loop.metrics import MetricsWriter
from starflow_jax.training.loop.metrics_server import MetricsServer, check_port
from starflow_jax.training.loop.profile import Profiler
from starflow_jax.training.loop.progress import Progress
from starflow_jax.training.loop.records import Records
from starflow_jax.training.loop.signals import StopRequests, stop_requests
from starflow_jax.training.loop.skipped_updates import Skips
from starflow_jax.training.loop.train_request import TrainRequest
from starflow_jax.training.loop.training_setup import Setup
from starflow_jax.training.loop.updates import Updates
from starflow_jax.training.loop.watchdog import Watchdog
from starflow_jax.training.loop.weights_and_biases import WandbRecorder
from starflow_jax.training.step.train_step import TrainState

_REMEDY = "starflow train --resume=latest-good resumes from the newest intact one"


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
      step: number of updates made in all, the step of the last checkpoint.
      interrupted: whether the run stopped before `config.train.steps`; the same call resumes it.
      metrics: the last row of metrics, empty where none was due.
      images_per_second: mean speed without compilation and callbacks, NaN where one call of the program did it all.
      stopped_by: number of the signal that stopped the run, 0 for none.
      skips: skipped updates; where `skips.longest` reached `config.train.max_skipped`, that stopped the run.
      bad: examples that could not be read and were skipped, on all processes: the reasons by name, at most 100.
    """

    step: int
    interrupted: bool
    metrics: Mapping[str, float]
    images_per_second: float
    stopped_by: int = 0
    skips: Skips = dataclasses.field(default_factory=Skips)
    bad: Mapping[str, str] = dataclasses.field(default_factory=dict)


def train(request: TrainRequest | ExperimentConfig, workdir: Path | str | None = None, **options: Any) -> TrainResult:
    """Trains an experiment in a folder, or resumes training there.

    Both calls do the same:

        train(config, "runs/digits", progress=False)
        train(TrainRequest(config, Path("runs/digits"), progress=False))

    The folder receives config.json, checkpoints/, metrics.csv, events/ (TensorBoard) and curves.png. A run that was
    stopped resumes from its last checkpoint and reaches exactly the parameters that it would have reached unstopped.
    Ctrl-C and SIGTERM save a checkpoint and return: after the running call of the program (`steps_per_call` updates),
    or at once while a callback runs.

    The folder may be the address of a store (`core.storage.working_folder`; with several processes
    `training.hosts.host_folder`).

    Args:
      request: a complete request, or the configuration of the experiment.
      workdir, **options: with a configuration, the other fields of `TrainRequest`.

    Returns:
      The result of the run.

    Raises:
      ValueError: data that do not fit the flow or are not those of the run so far, or a folder that belongs to another
        run, cannot be written, or holds a damaged checkpoint.
      SaveFailed: a checkpoint could not be written.
    """
    if not isinstance(request, TrainRequest):
        if workdir is None:
            raise TypeError("train needs a workdir with a configuration")
        request = TrainRequest(request, Path(workdir), **options)
    elif workdir is not None or options:
        raise TypeError("train takes no other arguments with a TrainRequest, which contains all of them")
    if is_address(request.workdir):
        if jax.process_count() > 1:
            with host_folder(request.workdir, "trains") as host:
                return train(dataclasses.replace(request, workdir=host.path, host=host))
        with working_folder(request.workdir, "trains") as folder:
            return train(dataclasses.replace(request, workdir=folder.path))
    account = TimeAccount()
    if request.metrics_port is not None and jax.process_index() == 0:
        check_port(request.listen, request.metrics_port)
    setup = Setup.from_config(with_recorded(request.config, request.workdir), request.source)
    request = dataclasses.replace(request, config=setup.config)
    data = _claim(request, setup)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests(request.grace))
        run = _begin(request, setup, data, account, stack)
        return run.until(stop)


def _claim(request: TrainRequest, setup: Setup) -> tuple[SourceFingerprint, ...]:
    """Claims the folder for this run; returns the fingerprint of its data."""
    config, workdir = request.config, request.workdir
    if not (workdir / CHECKPOINT_FOLDER).is_dir():  # a run that cannot start claims no folder
        check_start(config)
        if request.init_from is not None:
            check_source(config, request.init_from)
    data = same_everywhere(fingerprint(setup.source))
    of_hosts = request.host is not None
    on_first_process(lambda: claim_workdir(workdir, config, data, of_hosts=of_hosts), f"workdir {workdir}")
    return data


def _begin(
    request: TrainRequest,
    setup: Setup,
    data: Sequence[SourceFingerprint],
    account: TimeAccount,
    stack: contextlib.ExitStack,
) -> _Run:
    """Restores or initialises the run, and opens its output files; `stack` closes them."""
    config, workdir = request.config, request.workdir
    first = jax.process_index() == 0
    on_first_process(lambda: stack.enter_context(in_use(workdir)), f"workdir {workdir}")
    checkpoints = stack.enter_context(Checkpoints(workdir, config, data=data, write=True, host=request.host))
    bar = Progress(config.name, config.train.steps, enabled=request.progress and first)
    with account.within("restore"):
        state, loader = _start(request, setup, checkpoints, bar)
    step = int(state.step)
    stack.enter_context(bar.started(step))
    writer = stack.enter_context(MetricsWriter(workdir, step, enabled=first))
    if request.wandb is not None and first:
        recorder = WandbRecorder(request.wandb, workdir, name=config.name, config=dataclasses.asdict(config))
        stack.callback(recorder.close)
        writer.also(recorder.write)
    profiler = Profiler(workdir, request.profile)
    stack.callback(profiler.close)
    updates = Updates(setup.on_devices(), state, loader, profiler, account)
    peak = local_peak(jax.devices()) if request.peak is None else request.peak
    records = Records(updates, writer, bar, peak)
    stack.callback(updates.close)
    goodput = GoodputRecord(workdir, account, step, enabled=first)
    status = LiveStatus(config.train.steps, step, account, goodput)
    _watch(request, status, bar, stack)
    account.enter("step")
    return _Run(request, updates, records, checkpoints, status, goodput)


def _watch(request: TrainRequest, status: LiveStatus, bar: Progress, stack: contextlib.ExitStack) -> None:
    """Starts what watches the run from outside the loop: the watchdog, the metrics port, the profiler's port."""
    process = jax.process_index()
    watchdog = Watchdog(status, request.workdir, after=request.hang_after, factor=request.hang_factor, process=process)
    stack.enter_context(watchdog)
    if request.profiler_port is not None:
        jax.profiler.start_server(request.profiler_port)
        stack.callback(jax.profiler.stop_server)
    if request.metrics_port is not None and process == 0:
        server = stack.enter_context(
            MetricsServer(
                request.listen,
                request.metrics_port,
                run=request.config.name,
                figures=status.figures,
                seconds=status.account.seconds,
                healthy=watchdog.is_well,
            )
        )
        bar.remark(f"figures are served on port {server.port} of {request.listen}: /metrics, /healthz")


def _start(request: TrainRequest, setup: Setup, checkpoints: Checkpoints, bar: Progress) -> tuple[TrainState, Loader]:
    """The state and the loader of the newest checkpoint, or those of a new run."""
    config, layout = request.config, setup.layout
    ported = holds_parameters_alone(checkpoints)
    if not ported:
        say = bar.say if jax.process_index() == 0 else lambda _: None
        restored = restore_newest(
            checkpoints, abstract_state(config, layout), setup.loader, request.resume, say, _REMEDY
        )
        if restored is not None:
            return restored
    loader = setup.loader(0)
    return first_state(config, request.workdir if ported else request.init_from, layout), loader


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """One call of `train`, from its first update to its last."""

    request: TrainRequest
    updates: Updates
    records: Records
    checkpoints: Checkpoints
    status: LiveStatus
    goodput: GoodputRecord

    def until(self, stop: StopRequests) -> TrainResult:
        """Runs to the last step, or until a stop is requested, or until too many updates are skipped in a row."""
        steps, updates, records, stopped_by = self.request.config.train.steps, self.updates, self.records, 0
        try:
            while updates.step < steps and not self.diverged():
                if stopped_by := stop.agreed(updates.wait):
                    break
                records.advanced(updates.advance())
                self.status.step = updates.step
                self.record(stop)
        except KeyboardInterrupt:
            # From a callback, or a second signal. If it interrupted an update the state is lost and the last
            # checkpoint remains; with several processes, the others would not save together with this one.
            if jax.process_count() > 1 or not updates.is_intact():
                raise
            stopped_by = stop.received or signal.SIGINT
        if updates.pending:  # stopped between two rows
            self.measure()
        records.write()
        self.save(wait=True)
        if jax.process_index() == 0:
            plot_curves(self.request.workdir)
        self.goodput.write(updates.step)
        return TrainResult(
            step=updates.step,
            interrupted=updates.step < steps,
            metrics=records.metrics,
            images_per_second=updates.rate.total.images_per_second,
            stopped_by=stopped_by,
            skips=records.skips,
            bad=records.bad.reasons(updates.skipped),
        )

    def record(self, stop: StopRequests) -> None:
        """After a call of the program: metrics, callbacks and a checkpoint, each where it is due."""
        train, step = self.request.config.train, self.updates.step
        last = step == train.steps
        save = step % train.checkpoint_every == 0 and not last
        sample = last or step % train.sample_every == 0
        evaluate = train.evaluate_every > 0 and (last or step % train.evaluate_every == 0)
        if last or step % train.log_every == 0:
            self.measure()
        if sample or evaluate:
            callbacks = [*(self.request.callbacks if sample else ()), *(self.request.evaluations if evaluate else ())]
            try:
                with stop.interruptible():
                    self.call_back(callbacks)
            except Exception:
                # Save the progress of the run before the error of the callback is raised.
                if save and jax.process_count() == 1:
                    self.save(wait=True)
                raise
        self.records.write()
        if save:
            self.save()
        if sample and not last and jax.process_index() == 0:  # `until` plots at the end
            plot_curves(self.request.workdir)

    def measure(self) -> None:
        """Measures a row of metrics, and raises the error of a checkpoint that could not be written."""
        self.records.measure()
        self.status.measured(self.updates.step, self.records.metrics)
        self.goodput.write(self.updates.step)
        self.checkpoints.check()
        if not self.checkpoints.is_saving():
            self.status.save_finished()

    def diverged(self) -> bool:
        """Whether `max_skipped` updates in a row were skipped, as of the last row of metrics."""
        return 0 < self.request.config.train.max_skipped <= self.records.skips.longest

    def save(self, wait: bool = False) -> None:
        """Saves the state with the position of the loader."""
        updates = self.updates
        with updates.not_counting(), self.status.account.within("save"):
            self.checkpoints.save(updates.state, updates.loader.get_state(), metrics=self.records.row, wait=wait)
        self.status.save_finished()  # a save waits for the one before
        self.status.save_begun(updates.step)
        if not self.checkpoints.is_saving():
            self.status.save_finished()

    def call_back(self, callbacks: Sequence[Callback]) -> None:
        """Calls callbacks and records the scalars that they return."""
        updates, config = self.updates, self.request.config
        definition = abstract(config.flow, updates.setup.layout)[0]
        snapshot = Snapshot(
            config, self.request.workdir, updates.setup.source, updates.step, definition, updates.params
        )
        with updates.not_counting(), self.status.account.within("callback"):
            for callback in callbacks:
                found = callback(snapshot)
                self.records.add(found)
                self.status.evaluated(found or {})
