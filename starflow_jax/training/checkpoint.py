"""Checkpoints: the training state and the place in the data, in one folder a step.

A working folder holds `config.json` and `checkpoints/STEP/`, with the state in Orbax's own array format and
the loader's state as JSON, so nothing that is read can run code. Orbax writes a step under a temporary name,
renames it, and removes old steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from starflow_jax.config.build import from_json, to_json
from starflow_jax.config.experiment import ExperimentConfig
from starflow_jax.files import write_text
from starflow_jax.flows.parameters import abstract
from starflow_jax.training.metrics import CSV_FILE, EVENTS_FOLDER
from starflow_jax.training.optimizer import Params
from starflow_jax.training.plots import CURVES_FILE
from starflow_jax.training.step import TrainState, init_state

CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"

# What may differ between a run and its continuation: it changes no parameter.
_FREE = ("sample", "evaluate", "mesh")
_FREE_IN_TRAIN = ("log_every", "checkpoint_every", "sample_every", "keep", "steps_per_call")
_FREE_IN_DATA = ("threads", "workers", "prefetch", "index")


class Checkpoints:
    """The checkpoints of one working folder. A context manager: leaving it waits for writes to finish.

    Args:
      workdir: the folder.
      keep: how many to keep; None only reads, and removes nothing that a run in progress still writes.
    """

    def __init__(self, workdir: Path, keep: int | None = None):
        self.folder = Path(workdir).absolute() / CHECKPOINT_FOLDER
        writes = keep is not None
        # what a killed run left half-written goes when the next one starts
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=writes, cleanup_tmp_directories=writes)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()  # waits

    def latest_step(self) -> int | None:
        """The newest step saved, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, loader_state: dict[str, Any], *, wait: bool = False) -> None:
        """Saves step `state.step`, in the background once the arrays are copied; a step saved already is
        left.

        Args:
          loader_state: JSON values.
          wait: returns when the files are written.
        """
        step = int(state.step)
        if step != self.latest_step():
            # the copy is taken before this returns, so the caller may go on to reuse the buffers
            arguments = ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                loader=ocp.args.JsonSave(loader_state),
            )
            self._manager.save(step, args=arguments, force=True)
        if wait:
            self._manager.wait_until_finished()

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The state and the loader's state of one step.

        Args:
          like: the state as ShapeDtypeStructs.
          step: None for the newest.

        Raises:
          ValueError: no checkpoint, or one that cannot be read.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise ValueError(f"{self.folder} holds no checkpoint")
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(_placed(like)),
            loader=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:  # the libraries below raise many kinds for damaged files
            raise self._damaged(step, error) from error
        return restored["state"], restored["loader"]

    def resume(self, like: TrainState, loader: Any) -> TrainState:
        """The newest state, with `loader`, built as it was for the run, put where the run left it.

        Args:
          like: the state as ShapeDtypeStructs.

        Raises:
          ValueError: no checkpoint, or one that cannot be read.
        """
        step = self.latest_step()
        state, place = self.restore(like, step)
        try:
            # A loader takes some states of other types, and fails only when it is read.
            if jax.tree.map(type, place) != jax.tree.map(type, loader.get_state()):
                raise TypeError(f"{place!r} is no state of this loader")
            loader.set_state(place)
        except Exception as error:  # Grain raises whatever its own reading of the values meets
            raise self._damaged(step, error) from error
        return state

    def _damaged(self, step: int | None, error: Exception) -> ValueError:
        return ValueError(
            f"checkpoint {self.folder / str(step)} is damaged or belongs to another model ({type(error).__name__}), "
            "delete it to go on from an older one"
        )


def _placed(like: TrainState) -> TrainState:
    """ShapeDtypeStructs with a place for their arrays: this process's first device unless they name
    another."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here), like)


def abstract_state(config: ExperimentConfig) -> TrainState:
    """The training state as ShapeDtypeStructs; allocates nothing."""
    return jax.eval_shape(lambda: init_state(config))


def load_run(workdir: Path | str, *, ema: bool = True) -> tuple[ExperimentConfig, Any, Params, int]:
    """What a trained run left, for sampling and evaluation.

    Args:
      workdir: the run's folder.
      ema: takes the running mean of the parameters where the run kept one.

    Returns:
      Its configuration, the flow's definition and parameters (for `flows.parameters.merge`), and the step.

    Raises:
      ValueError: no run there, or a damaged one.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    if config is None or not (workdir / CHECKPOINT_FOLDER).is_dir():
        raise ValueError(f"workdir {workdir} holds no training run")
    with Checkpoints(workdir) as checkpoints:
        state, _ = checkpoints.restore(abstract_state(config))
    params = state.ema if ema and state.ema is not None else state.params
    return config, abstract(config.flow)[0], params, int(state.step)


def read_config(workdir: Path) -> ExperimentConfig | None:
    """The configuration of the run in `workdir`, None where there is no run.

    Raises:
      ValueError: a file that is no configuration.
    """
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a configuration: {error}") from error


def claim_workdir(workdir: Path, config: ExperimentConfig) -> None:
    """Makes `workdir` the folder of `config`: creates it, or checks that its run is of this configuration.

    Only what changes no parameter (how often to log and save, sampling, evaluation) may differ.

    Raises:
      ValueError: a folder with something else in it, a run of another configuration, or a path that cannot
        be written.
    """
    workdir = Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        old = read_config(workdir)
        if old is None and any(workdir.iterdir()):
            raise ValueError(f"workdir {workdir} is not empty and holds no training run")
        if old is not None:
            difference = first_difference(old, config)
            if difference is not None:
                name, before, now = difference
                raise ValueError(
                    f"workdir {workdir} holds a run of another config: {name} is {before!r} there and {now!r} here"
                )
        for names, kind, is_kind in (
            ((CHECKPOINT_FOLDER, EVENTS_FOLDER), "folder", Path.is_dir),
            ((CSV_FILE, CURVES_FILE), "file", Path.is_file),
        ):
            for path in (workdir / name for name in names):
                if path.exists() and not is_kind(path):
                    raise ValueError(f"workdir {workdir} cannot hold a run: {path.name} is there and is no {kind}")
        write_text(workdir / CONFIG_FILE, to_json(config))
    except OSError as error:
        raise ValueError(f"workdir {workdir} cannot be written: {error.strerror or error}") from error


def first_difference(old: Any, new: Any, path: str = "config") -> tuple[str, Any, Any] | None:
    """The first field, with both values, in which two configurations describe different runs."""
    for name in old.__dataclass_fields__:
        a, b = getattr(old, name), getattr(new, name)
        free = {"config": _FREE, "config.train": _FREE_IN_TRAIN, "config.data": _FREE_IN_DATA}.get(path, ())
        if name in free or a == b:
            continue
        if type(a) is type(b) and hasattr(a, "__dataclass_fields__"):
            difference = first_difference(a, b, f"{path}.{name}")
            if difference is not None:
                return difference
            continue
        return f"{path}.{name}", a, b
    return None
