"""Checkpoints: the training state and the position in the data, one folder per step.

The folder of a run holds `config.json` and `checkpoints/STEP/`, in which every part has its own folder, so that
sampling and scoring read `params` or `ema` only:

    params, opt_state, ema   in Orbax's array format; ema if the run keeps an exponential moving average
    rest                     the other fields of `TrainState`: the step and the key
    loader, data, config     the position in the data, their fingerprint, and the configuration, JSON
    figures                  the metrics measured at this step, JSON
    digests                  the step, and a checksum of every part, JSON

Reading a checkpoint executes no code from it. Orbax writes a step under a temporary name, renames it, and removes old
steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from starflow_jax.core.config.any_experiment import AnyExperiment
from starflow_jax.core.config.build import build, to_json
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.storage.local_moves import move
from starflow_jax.data.pipeline.fingerprint import SourceFingerprint, to_values
from starflow_jax.sharding.layout import Layout, located
from starflow_jax.training.checkpoints.array_writing import open_manager, save_arguments
from starflow_jax.training.checkpoints.digests import digest, json_digest
from starflow_jax.training.checkpoints.failed_saves import cause, remove_unfinished
from starflow_jax.training.checkpoints.parts import (
    DIGESTS,
    Unusable,
    agreed,
    read_arrays,
    read_digests,
    read_json,
    steps_in,
)
from starflow_jax.training.checkpoints.retention import NewestAndBest
from starflow_jax.training.checkpoints.same_data import DATA
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, first_difference
from starflow_jax.training.distributed.agreement import barrier, gather_texts
from starflow_jax.training.hosts.array_files import needed_shards, own_shards
from starflow_jax.training.hosts.host_folder import HostFolder
from starflow_jax.training.step.optimizer import Params
from starflow_jax.training.step.train_step import TrainState, init_state

REST = "rest"
_ALONE_SECONDS = 20.0  # seconds that a failed process waits for a save in which the others take part
ARRAYS = ("params", "ema", "opt_state", REST)
PARTS = (*ARRAYS, "loader", DATA, "config", "figures", DIGESTS)


class SaveFailed(OSError):
    """A checkpoint could not be written; the message is one sentence. Earlier checkpoints are intact."""


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for writes to finish.

    With several processes all of them make the same calls.

    Args:
      workdir: the folder of the run.
      config: of the run; if given, checkpoints of another run are refused.
      data: fingerprint of the training data, saved with each step (`training.checkpoints.same_data`).
      write: whether to save checkpoints, retaining those that `config.train` specifies. Otherwise they are only read,
        and unfinished checkpoints of a run in progress are left alone.
      host: where every process writes into a local folder of its own, that of this process.
    """

    def __init__(
        self,
        workdir: Path,
        config: AnyExperiment | None = None,
        *,
        data: Sequence[SourceFingerprint] | None = None,
        write: bool = False,
        host: HostFolder | None = None,
    ):
        self.folder = Path(workdir).absolute() / CHECKPOINT_FOLDER
        self.config = config
        self._data = data
        self._saving: int | None = None  # a step whose files may still be written
        self._save_failed = False
        self._writes, self._host = write, host
        self._scores: dict[int, float] = {}
        policy = None
        if write:
            assert config is not None  # it is part of each checkpoint
            train = config.train
            for folder in map(self._folder, self.steps()):
                with contextlib.suppress(Unusable):  # reported when it is restored
                    self._note_score(int(folder.name), read_json(folder, "figures", read_digests(folder)))
            policy = NewestAndBest(train.keep, train.keep_best, self._scores)
        self._manager = open_manager(self.folder, policy, own=ARRAYS if host is not None else ())

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and jax.process_count() > 1:
                self._close_soon()
            else:
                self._manager.close()  # waits
        except Exception as error:  # the error of a save in the background
            failed = self._failed(error)
            if kind is None:
                raise failed from error
        finally:
            if self._writes and self._keeps_folder:
                # Removes the incomplete files of a failed save: on a full disk the next run could not start otherwise.
                remove_unfinished(self.folder, quiet_s=0.3 if self._save_failed else 0.0)

    def _close_soon(self) -> None:
        """Waits for a save in the background for a limited time, since this process has failed."""

        def close() -> None:
            with contextlib.suppress(Exception):
                self._manager.close()

        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(_ALONE_SECONDS)

    def steps(self) -> list[int]:
        """The steps that have a folder (or a file of that name), oldest first."""
        return steps_in(self.folder)

    def latest_step(self) -> int | None:
        """The newest step, None if there is none."""
        return max(self.steps(), default=None)

    def existing_step(self, step: int | None) -> int:
        """A step that there is a checkpoint of, the newest for None; ValueError where there is none."""
        step = self.latest_step() if step is None else step
        if step is None or step not in self.steps():
            steps = ", ".join(map(str, self.steps())) or "none"
            raise ValueError(f"step must be one of the checkpoints in {self.folder.parent}, {steps}, got {step}")
        return step

    def save(
        self,
        state: TrainState,
        loader_state: dict[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        wait: bool = False,
    ) -> None:
        """Saves step `state.step`, in the background once the arrays are copied; does nothing if that step exists.

        Args:
          loader_state: JSON values.
          metrics: of this step; `train.best_metric` is looked up among them.
          wait: whether to wait until the files are written.

        Raises:
          SaveFailed: this checkpoint, or the previous one, could not be written.
        """
        assert self.config is not None
        step = int(state.step)
        if step not in self._manager.all_steps():
            self.check(wait=True)
            figures = {name: value for name, value in (metrics or {}).items() if math.isfinite(value)}
            values: dict[str, Any] = {"loader": loader_state, "figures": figures}
            values["config"] = json.loads(to_json(self.config))
            if self._data is not None:
                values[DATA] = to_values(self._data)
            if self._host is not None:  # every process writes them, and figures such as times differ
                values = json.loads(gather_texts(json.dumps(values))[0])
            trees = _parts(state)
            values[DIGESTS] = {
                "step": step,
                **{name: json_digest(value) for name, value in values.items()},
                **{name: digest(tree) for name, tree in trees.items()},
            }
            self._note_score(step, values["figures"])
            self._saving = step
            try:
                if self._host is not None:
                    self._host.record_share(step, own_shards(step, trees))
                arguments = save_arguments(trees, values, own=self._host is not None)
                # the arrays are copied before this returns, so the caller may reuse the buffers
                self._manager.save(step, args=arguments, force=True)
            except Exception as error:  # tensorstore and Orbax raise many types of errors for a full disk
                raise self._failed(error) from error
        self.check(wait=wait)

    def is_saving(self) -> bool:
        """Whether a checkpoint may still be being written."""
        return self._saving is not None

    def check(self, *, wait: bool = False) -> None:
        """Raises SaveFailed if a save in the background has failed; with `wait`, waits for it to finish."""
        if self._saving is None or (not wait and self._manager.is_saving_in_progress()):
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._saving = None

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The training state and the loader state of one step, on any devices and by any number of processes.

        Args:
          like: the state as ShapeDtypeStructs; arrays without a sharding go to this process's first device.
          step: None for the newest.

        Raises:
          ValueError: no checkpoint, a damaged one, or one of another run.
        """
        folder = self._folder(step)

        def read() -> tuple[TrainState, dict[str, Any]]:
            self._fetch(folder, _parts(like))
            digests = digests_of_run(folder, self.config)
            position = read_json(folder, "loader", digests)
            if DATA in digests:  # compared earlier (`same_data`)
                read_json(folder, DATA, digests)
            trees = {name: read_arrays(folder, name, tree, digests) for name, tree in _parts(like).items()}
            return dataclasses.replace(like, **trees.pop(REST), **trees), position

        return agreed(folder, read)

    def restore_params(self, like: Params, step: int | None = None, *, ema: bool = False) -> tuple[Params, int]:
        """The parameters, or with `ema` their moving average if there is one, and the step; reads no other arrays.

        Raises:
          ValueError: as `restore`.
        """
        folder = self._folder(step)

        def read() -> Params:
            digests = digests_of_run(folder, self.config)
            # a ported checkpoint has no moving average, whatever its configuration
            part = "ema" if ema and "ema" in digests else "params"
            self._fetch(folder, {part: like})
            return read_arrays(folder, part, like, digests)

        return agreed(folder, read), int(folder.name)

    def resume(self, like: TrainState, loader_at: Callable[[int], Any], step: int | None = None) -> tuple[Any, Any]:
        """The training state of one step, and the loader at the position where the run left it.

        Args:
          like: as for `restore`.
          loader_at: builds the loader of a step.

        Raises:
          ValueError: as `restore`; also for a position that the loader does not accept.
        """
        folder = self._folder(step)
        state, position = self.restore(like, int(folder.name))
        loader = loader_at(int(folder.name))

        def put() -> None:
            # Some loaders accept states of other types and fail only when they are read.
            if jax.tree.map(type, position) != jax.tree.map(type, loader.get_state()):
                raise Unusable(f"is damaged: {position!r} is not a position in the data")
            try:
                loader.set_state(position)
            except Exception as error:  # loaders raise many types of errors for bad values
                raise Unusable(f"is damaged: {position!r} is not a position in the data") from error

        agreed(folder, put)
        return state, loader

    def set_aside(self, step: int) -> Path:
        """Renames the folder of a step so that it is no longer a checkpoint; returns its new path."""
        folder = self._folder(step)
        damaged = folder.with_name(f"{step}.damaged")
        if self._keeps_folder:
            while damaged.exists():
                damaged = damaged.with_name(f"{damaged.name}+")
            move(folder, damaged)
        if self._host is not None:
            self._host.set_aside(step)
        barrier("set aside")
        self._manager.reload()
        return damaged

    @property
    def _keeps_folder(self) -> bool:
        """Whether this process renames and removes what is in the folder."""
        return self._host is not None or jax.process_index() == 0

    def _fetch(self, folder: Path, like: Mapping[str, Any]) -> None:
        """Fetches the shards that this process reads, where they may be in the store only; raises Unusable."""
        if self._host is not None:
            try:
                self._host.fetch(needed_shards(folder.parents[1], int(folder.name), like))
            except ValueError as error:
                raise Unusable(f"is damaged: {error}") from error

    def _folder(self, step: int | None) -> Path:
        self.check(wait=True)
        step = self.latest_step() if step is None else step
        if step is None:
            raise ValueError(f"{self.folder} contains no checkpoint")
        return self.folder / str(step)

    def _note_score(self, step: int, metrics: Mapping[str, float]) -> None:
        assert self.config is not None
        name = self.config.train.best_metric
        if name is not None and name in metrics:
            self._scores[step] = metrics[name]

    def _failed(self, error: Exception) -> SaveFailed:
        """The error of a failed save."""
        step, self._saving, self._save_failed = self._saving, None, True
        return SaveFailed(
            f"checkpoint {self.folder / str(step)} could not be written ({cause(error)}); earlier checkpoints are "
            "intact"
        )


def digests_of_run(folder: Path, config: AnyExperiment | None) -> Mapping[str, Any]:
    """The checksums of a complete checkpoint of the run with this configuration, or of any run for None.

    Raises:
      Unusable: an incomplete or damaged checkpoint, or one of another run.
    """
    digests = read_digests(folder)
    saved = read_json(folder, "config", digests)
    if config is not None:
        try:
            difference = first_difference(build(type(config), saved), config)
        except ValueError as error:
            raise Unusable(f"is of another version: {error}") from error
        if difference is not None:
            name, other, value = difference
            raise Unusable(f"is of another run: {name} is {other!r} in the checkpoint and {value!r} in this run")
    return digests


def _parts(state: TrainState) -> dict[str, Any]:
    """The trees of arrays that are saved separately, by the name of their folder."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    parts = {name: fields.pop(name) for name in ("params", "opt_state", "ema")}
    return {name: tree for name, tree in parts.items() if tree is not None} | {REST: fields}


def abstract_state(config: ExperimentConfig, layout: Layout | None = None) -> TrainState:
    """The training state as ShapeDtypeStructs, with shardings if there is a layout; allocates nothing."""
    return located(layout, jax.eval_shape(lambda: init_state(config)))
