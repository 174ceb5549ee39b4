"""The model of a studio, loaded once: its checkpoints, its solvers, and the arguments that name it."""

from __future__ import annotations

import collections
import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.registries import SOLVERS
from starflow_jax.core.storage.places import shown
from starflow_jax.data.pipeline.opening_notes import printable_name
from starflow_jax.flows.parameters import count
from starflow_jax.sampling.loaded_run import Run, open_run
from starflow_jax.sampling.model_folder import is_run, load_model_folder
from starflow_jax.sampling.solver_choice import choose_solver
from starflow_jax.studio.studio_request import StudioRequest
from starflow_jax.training.checkpoints.inventory import checkpoint_entries
from starflow_jax.training.checkpoints.workdir import read_config

# Models of other checkpoints that are kept beside the first one: both sides of a comparison.
_KEPT = 2


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedModel:
    """A loaded model.

    Attributes:
      run: the model; arguments: the options of `starflow` that name it, such as ("--workdir", "runs/digits").
    """

    run: Run
    arguments: tuple[str, ...]

    @property
    def config(self) -> ExperimentConfig:
        """The experiment."""
        return self.run.config

    @property
    def videos(self) -> bool:
        """Whether it is a model of videos."""
        return bool(self.config.data.frames)

    @functools.cached_property
    def parameters(self) -> int:
        """The number of parameters of the flow."""
        return count(self.run.params)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, their numbers where they have none; empty for captions or no condition."""
        names = self.config.data.class_names or ()
        return tuple(printable_name(names[k]) if k < len(names) else str(k) for k in range(self.config.num_classes))

    @functools.cached_property
    def solvers(self) -> tuple[str, ...]:
        """The names of the solvers that invert it, that of its configuration first.

        A solver that needs a calibration or a learned inverse is among them where the folder has it.
        """
        own = self.config.sample.solver
        names = sorted(SOLVERS.names(), key=lambda name: (name != own, SOLVERS.names().index(name)))
        return tuple(name for name in names if _is_usable(name, self.run))

    def arguments_at(self, step: int) -> tuple[str, ...]:
        """The options that name the model at another checkpoint."""
        place = self.arguments.index("--step") + 1
        return (*self.arguments[:place], str(step), *self.arguments[place + 1 :])

    def steps(self) -> tuple[int, ...]:
        """The steps of its complete checkpoints, the newest first; read anew, since the run may be in training."""
        entries = checkpoint_entries(self.run.workdir, self.config)
        found = {entry.step for entry in entries if entry.step is not None and entry.problem is None}
        return tuple(sorted(found | {self.run.step}, reverse=True))


class Checkpoints:
    """The model of a studio, and models of its other checkpoints, of which few are kept in memory.

    Attributes:
      request: that named the model; first: the model.
    """

    def __init__(self, request: StudioRequest):
        """Loads the model; raises ValueError as `open_run` does."""
        self.request = request
        self.first = _opened(request)
        self._others: collections.OrderedDict[int, OpenedModel] = collections.OrderedDict()

    def at(self, step: int | None) -> OpenedModel:
        """The model of a checkpoint, None for the first one; by one thread at a time, that which holds the device.

        Raises:
          ValueError: there is no such checkpoint, or it is damaged.
        """
        if step is None or step == self.first.run.step:
            return self.first
        steps = self.first.steps()
        check(step in steps, f"checkpoint must be one of {', '.join(map(str, steps))}, got {step}")
        found = self._others.pop(step, None)
        if found is None:
            while len(self._others) >= _KEPT:
                self._others.popitem(last=False)  # before the next is loaded, so that its memory is free
            found = _opened(dataclasses.replace(self.request, step=step))
        self._others[step] = found
        return found


def check_model(request: StudioRequest) -> None:
    """Checks that a request names a model that samples can be seen of, before its arrays are read.

    Raises:
      ValueError: there is no run, or its configuration is damaged.
    """
    workdir = request.workdir
    if request.model is not None:
        workdir = request.model if is_run(request.model) else load_model_folder(request.model).flow
    assert workdir is not None  # StudioRequest checks it
    check(read_config(workdir) is not None, f"workdir {workdir} contains no training run")


def _opened(request: StudioRequest) -> OpenedModel:
    run = open_run(request.run_request)
    name, path = ("--workdir", request.workdir) if request.model is None else ("--model", request.model)
    # With its step, because a run that trains has a newer one later.
    arguments = [name, shown(Path(path or ".")), "--step", str(run.step)]
    return OpenedModel(run, tuple(arguments if request.ema else [*arguments, "--no-ema"]))


def _is_usable(name: str, run: Run) -> bool:
    try:
        choose_solver(name, run, batch=1, warn=lambda _: None)
    except (ValueError, OSError):  # it needs what the folder has not, or has options without a default
        return False
    return True


def device_text() -> str:
    """The device that the model is on, for people."""
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    return f"{len(devices)} x {', '.join(kinds)}" if len(devices) > 1 else kinds[0]


def tokens_of(config: ExperimentConfig, frames: int) -> int:
    """Tokens of the flow in `frames` of its frames; a still image is one frame."""
    return frames * int(np.prod(config.flow.grid))
