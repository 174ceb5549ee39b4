"""Post-training, from the first step or the last checkpoint to the end or to the bound of the KL.

Step k draws samples of the parameters after k steps, measures them, and trains on them. Whether the KL is within its
bound is known before these parameters are saved or trained on: every checkpoint is within the bound, and where it is
exceeded the training ends with the parameters that were measured last. A call measures the parameters that it begins
with, and refuses those of an earlier call that exceed its bound. Everything is a function of the parameters, the seed
and the step, so that a resumed training is that of an unstopped one bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import jax
import numpy as np

from starflow_jax.core.config.post_training_config import PostTrainingExperiment
from starflow_jax.evaluation.rewards.reward import RewardInputs
from starflow_jax.post_training.drawn_samples import DrawnSamples
from starflow_jax.post_training.policy_update import PairBatch, initial_state, update, update_in_place
from starflow_jax.post_training.post_train_request import PostTrainRequest
from starflow_jax.post_training.post_training_setup import PostTrainingSetup, columns, default_experiment
from starflow_jax.post_training.step_batches import file_batch, policy_batch, ranked_batch
from starflow_jax.sharding.layout import located
from starflow_jax.training.checkpoints.finished_run import newest_step, run_config
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.post_training_record import claim_post_training
from starflow_jax.training.checkpoints.resume import restore_newest
from starflow_jax.training.checkpoints.workdir import in_use
from starflow_jax.training.loop.metrics import MetricsWriter, average
from starflow_jax.training.loop.progress import Progress
from starflow_jax.training.loop.signals import StopRequests, stop_requests
from starflow_jax.training.step.train_step import TrainState, learning_rate

Ending = Literal["steps", "kl-bound", "signal"]


@dataclasses.dataclass(frozen=True)
class PostTrained:
    """The result of post-training.

    Attributes:
      path: the folder of the run that was made; step: number of steps that its parameters were trained for.
      ending: what ended the call: all steps are made, the bound of the KL, or a signal; stopped_by: its number, else 0.
      first: the figures of the samples of the base run, empty for a call that resumed a training; last: those of the
        samples of the final parameters (`DrawnSamples.figures`).
      seconds: duration of this call.
    """

    path: Path
    step: int
    ending: Ending
    stopped_by: int
    first: Mapping[str, float]
    last: Mapping[str, float]
    seconds: float


def post_train(
    request: PostTrainRequest | Path | str,
    out: Path | str | None = None,
    *,
    rewards: Mapping[str, Callable[[RewardInputs], Any]] | None = None,
    progress: bool = True,
    **fields: Any,
) -> PostTrained:
    """Trains a finished flow on a reward or on pairs, or resumes the training.

    Both calls do the same, where `experiment` is `default_experiment(config, step, reward="digit", target=3)`:

        post_train("runs/digits", "runs/threes", reward="digit", target=3)
        post_train(PostTrainRequest(Path("runs/digits"), Path("runs/threes"), experiment))

    The folder of the new run receives config.json (the flow, its data, and the training of these steps),
    post_training.json, checkpoints/, metrics.csv and events/ (TensorBoard); the folder of the base run is only read.
    Ctrl-C and SIGTERM save a checkpoint and return; the same request resumes to exactly the parameters that it would
    have reached unstopped.

    Args:
      request: a complete request, or the folder of the base run.
      out: with a folder, that of the run that is made.
      rewards, progress: with a folder, the other fields of `PostTrainRequest`.
      **fields: with a folder, fields of `PostTrainingExperiment` in place of those of `default_experiment`.

    Raises:
      ValueError: there is no such run, or its parts or those of the request do not fit together, the folder is that of
        another training or holds a damaged checkpoint, its parameters exceed the bound of the KL, or a reward fails.
      SaveFailed: a checkpoint could not be written.
    """
    start = time.perf_counter()
    if not isinstance(request, PostTrainRequest):
        if out is None:
            raise TypeError("post_train needs out with the folder of a base run")
        experiment = _experiment(Path(request), fields)
        request = PostTrainRequest(Path(request), Path(out), experiment, rewards or {}, progress)
    elif out is not None or rewards is not None or fields:
        raise TypeError("post_train takes no other arguments with a PostTrainRequest, which contains all of them")
    setup = PostTrainingSetup.from_base(request.workdir, request.experiment, request.rewards)
    experiment, config = setup.experiment, setup.objective.config
    claim_post_training(request.out, experiment, config)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        stack.enter_context(in_use(request.out))
        checkpoints = stack.enter_context(Checkpoints(request.out, config, write=True))
        bar = Progress(experiment.name, experiment.train.steps, enabled=request.progress)
        state, resumed = _first_state(setup, checkpoints, bar)
        stack.enter_context(bar.started(int(state.step)))
        rewarded = setup.sampler.reward is not None
        fields_of_rows = columns(setup.sampler.judges, rewarded=rewarded)
        writer = stack.enter_context(MetricsWriter(request.out, int(state.step), fields=fields_of_rows))
        run = _Run(setup, state, checkpoints, writer, bar, recorded=resumed)
        ending = run.to_end(stop)
    stopped_by = stop.received if ending == "signal" else 0
    seconds = time.perf_counter() - start
    return PostTrained(request.out, run.step, ending, stopped_by, run.first, run.measured, seconds)


def _experiment(workdir: Path, fields: Mapping[str, Any]) -> PostTrainingExperiment:
    return default_experiment(run_config(workdir), **{"base_step": newest_step(workdir), **fields})


def refuse_bound(kl: float, bound: float, step: int) -> NoReturn:
    """Raises ValueError: a call resumes parameters whose KL exceeds a bound that is new or was lowered."""
    raise ValueError(f"kl_bound must be at least the {kl:.4g} nats of the checkpoint at step {step}, got {bound:g}")


def _first_state(setup: PostTrainingSetup, checkpoints: Checkpoints, bar: Progress) -> tuple[TrainState, bool]:
    """The state of the newest checkpoint and True, or that of the base run and False."""
    experiment, layout = setup.experiment, setup.layout
    params = setup.sampler.run.params
    like = located(layout, jax.eval_shape(lambda params: initial_state(experiment, params), params))
    restored = restore_newest(checkpoints, like, _Position, "latest", bar.say)
    if restored is not None:
        return restored[0], True
    if layout is None:
        # On the device of a restored state, so that both run the same compiled program.
        return jax.device_put(initial_state(experiment, params), jax.local_devices()[0]), False
    begin = jax.jit(initial_state, static_argnums=0, out_shardings=layout.tree(like))
    return begin(experiment, params), False


class _Position:
    """The position in the stream of steps, as `Checkpoints` saves that of a loader."""

    def __init__(self, step: int):
        self._step = step

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        if state["next_index"] != self._step:
            raise ValueError(f"next_index must be {self._step}, got {state['next_index']}")


class _Run:
    """The steps of one call.

    Attributes:
      state: the training state; step: number of steps made, on the host.
      first: figures of the samples of the base run; measured: those of the newest samples within the bound.
    """

    def __init__(
        self,
        setup: PostTrainingSetup,
        state: TrainState,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        bar: Progress,
        *,
        recorded: bool,
    ):
        self._recorded = recorded  # whether the row of the first samples is in the file already
        self.setup, self.state, self.step = setup, state, int(state.step)
        self._begin = self.step
        self.first: Mapping[str, float] = {}
        self.measured: Mapping[str, float] = {}
        self._checkpoints, self._writer, self._bar = checkpoints, writer, bar
        # The state that was measured last, and its step: kept only where a bound may lead back to it.
        self._within: tuple[TrainState, int] | None = None
        self._metrics: list[Mapping[str, Any]] = []
        self._since: tuple[float, int] | None = None  # the first step compiles and is not timed

    def to_end(self, stop: StopRequests) -> Ending:
        """Makes steps until the last one, the bound of the KL, or a signal."""
        experiment = self.setup.experiment
        train, bound = experiment.train, experiment.kl_bound
        while True:
            drawn = self._draw() if self._is_measured(stop) else None
            if drawn is not None:
                figures = drawn.figures()
                if bound is not None and figures["kl"] > bound:
                    if self._within is None:
                        refuse_bound(figures["kl"], bound, self.step)
                    self._return(figures, bound)
                    return "kl-bound"
                self.measured = figures
                if self.step == 0:
                    self.first = figures
                self._record(figures)
                if bound is not None:
                    self._within = (self.state, self.step)
                if self.step == train.steps or stop.agreed():
                    self._save(wait=True)
                    return "steps" if self.step == train.steps else "signal"
                if self.step % train.checkpoint_every == 0 and self.step > 0:
                    self._save()
            self._advance(drawn)

    def _return(self, figures: Mapping[str, float], bound: float) -> None:
        """Goes back to the state that was measured last, and saves it."""
        assert self._within is not None  # the first parameters of a call are measured
        self._record(figures, always=True)
        self.state, self.step = self._within
        self._save(wait=True)
        self._bar.remark(
            f"KL {figures['kl']:.3f} nats exceeds the bound of {bound:g}; the parameters of step {self.step} are kept"
        )

    def _is_measured(self, stop: StopRequests) -> bool:
        """Whether samples are drawn at this step: they are what is trained on, or a row or a checkpoint is due."""
        train = self.setup.experiment.train
        due = self.step % train.log_every == 0 or self.step % train.checkpoint_every == 0
        due |= self.step in (self._begin, train.steps) or stop.received != 0
        return self.setup.pairs is None or due

    def _draw(self) -> DrawnSamples:
        return self.setup.sampler(self.state.params, self.step)

    def _advance(self, drawn: DrawnSamples | None) -> None:
        setup = self.setup
        if setup.pairs is not None:
            batch: Any = file_batch(setup, self.step)
        elif setup.experiment.method == "dpo":
            assert drawn is not None
            batch = ranked_batch(setup, drawn)
        else:
            assert drawn is not None
            batch = policy_batch(setup, drawn)
        # Without a bound nothing leads back to the old state, and its buffers are used again.
        program = update_in_place if setup.experiment.kl_bound is None else update
        self.state, metrics = program(setup.objective, self.state, setup.put(batch))
        unknown = "clipped" if isinstance(batch, PairBatch) else "accuracy"
        self._metrics.append({**metrics, unknown: np.nan})
        self.step += 1
        self._bar.advance(1)

    def _record(self, figures: Mapping[str, float], *, always: bool = False) -> None:
        """Writes a row where one is due: the samples of this step, and means over the updates since the last row."""
        train = self.setup.experiment.train
        recorded, self._recorded = self._recorded, False
        if recorded or not (always or self.step % train.log_every == 0 or self.step == train.steps):
            return
        row = dict(figures)
        if self._metrics:
            calls = [{name: np.reshape(value, 1) for name, value in c.items()} for c in jax.device_get(self._metrics)]
            row |= {name: value for name, value in average(calls).items() if not math.isnan(value)}
        now = time.perf_counter()
        if self._since is not None and self.step > self._since[1]:
            row["images_per_second"] = (self.step - self._since[1]) * train.batch_size / (now - self._since[0])
        if self._metrics:
            self._since = (now, self.step)
        row["learning_rate"] = float(learning_rate(self.setup.objective.config)(self.step))
        self._metrics = []
        self._writer.write(self.step, row)
        self._bar.show(self.step, row)

    def _save(self, *, wait: bool = False) -> None:
        self._checkpoints.save(self.state, {"next_index": self.step}, metrics=self.measured, wait=wait)
