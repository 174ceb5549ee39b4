"""Training a learned inverse, from the first update or the last checkpoint to the end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from starflow_jax.data import Loader
from starflow_jax.data.pipeline.fingerprint import fingerprint
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.resume import restore_newest
from starflow_jax.training.checkpoints.same_data import check_same_data
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, claim_workdir, in_use
from starflow_jax.training.inverse.inverse_folder import INVERSE_FOLDER
from starflow_jax.training.inverse.inverse_setup import InverseSetup
from starflow_jax.training.inverse.inverse_update import METRICS, abstract_state, init_state, update
from starflow_jax.training.inverse.train_inverse_request import TrainInverseRequest
from starflow_jax.training.loop.basic_loop import BasicRun, run_to_end
from starflow_jax.training.loop.metrics import MetricsWriter
from starflow_jax.training.loop.progress import Progress
from starflow_jax.training.loop.signals import stop_requests
from starflow_jax.training.step.train_step import TrainState, learning_rate

COLUMNS = ("step", *METRICS, "learning_rate", "images_per_second")


@dataclasses.dataclass(frozen=True)
class TrainedInverse:
    """The result of a training of a learned inverse.

    Attributes:
      path: its folder; step: number of updates made.
      stopped_by: number of the signal that stopped the training, 0 for none.
      metrics: the last row of metrics, empty where none was due.
      seconds: duration of this call.
      parameters: number of parameters of the network, and flow_parameters: of the flow.
    """

    path: Path
    step: int
    stopped_by: int
    metrics: Mapping[str, float]
    seconds: float
    parameters: int
    flow_parameters: int


def train_inverse(request: TrainInverseRequest) -> TrainedInverse:
    """Trains the learned inverse of a finished run, or resumes the training.

    The subfolder `inverse` of the run receives config.json, checkpoints/, metrics.csv and events/ (TensorBoard).
    Ctrl-C and SIGTERM save a checkpoint and return; the same request resumes to exactly the parameters that it would
    have reached unstopped.

    Raises:
      ValueError: there is no such run, or its parts or those of the request do not fit together, or the folder is that
        of another training or holds a damaged checkpoint.
      SaveFailed: a checkpoint could not be written.
    """
    experiment, folder = request.experiment, request.workdir / INVERSE_FOLDER
    setup = InverseSetup.from_run(request.workdir, experiment)
    claim_workdir(folder, experiment)
    config, layout = setup.objective.config, setup.objective.layout
    data = fingerprint(setup.training.source)
    check_same_data(folder / CHECKPOINT_FOLDER, config, config, data)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        stack.enter_context(in_use(folder))
        checkpoints = stack.enter_context(Checkpoints(folder, experiment, data=data, write=True))
        bar = Progress(experiment.name, experiment.train.steps, enabled=request.progress)
        abstract = abstract_state(experiment, config, layout)
        restored = restore_newest(checkpoints, abstract, setup.training.loader, "latest", bar.say)
        state, loader = restored or (init_state(experiment, config, layout), setup.training.loader(0))
        stack.callback(loader.close)
        stack.enter_context(bar.started(int(state.step)))
        writer = stack.enter_context(MetricsWriter(folder, int(state.step), fields=COLUMNS))
        run = _Run(setup, state, loader)
        metrics, stopped_by = run_to_end(run, stop, checkpoints, writer, bar)
    sizes = [_size(params) for params in (run.state.params, setup.frozen.flow)]
    return TrainedInverse(folder, run.step, stopped_by, metrics, time.perf_counter() - start, *sizes)


class _Run(BasicRun):
    """The updates of a learned inverse."""

    def __init__(self, setup: InverseSetup, state: TrainState, loader: Loader):
        super().__init__(setup.objective.experiment.train, state, loader)
        self._setup = setup

    def update(self, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, Mapping[str, jax.Array]]:
        """See `BasicRun`. Which updates draw their pairs is a function of the step: they are spread evenly."""
        setup, share = self._setup, self._setup.objective.experiment.pairs.sampled
        sampled = math.floor((self.step + 1) * share) > math.floor(self.step * share)
        return update(setup.objective, sampled, self.state, setup.frozen, setup.put(batch))

    def derived(self, values: dict[str, float]) -> dict[str, float]:
        """See `BasicRun`."""
        objective = self._setup.objective
        config = dataclasses.replace(objective.config, train=objective.experiment.train)
        return values | {"learning_rate": float(learning_rate(config)(self.step))}


def _size(params: object) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
