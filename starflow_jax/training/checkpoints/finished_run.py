"""What the folder of a finished run holds: its configuration, its checkpoints and where it comes from."""

from __future__ import annotations

from pathlib import Path

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.regular_files import read_json
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.parts import Unusable, read_digests
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, read_config

ORIGIN_FILE = "origin.json"  # of a run that was ported from a repository, with its commit


def run_config(workdir: Path) -> ExperimentConfig:
    """The configuration of the run in `workdir`; ValueError where there is none."""
    config = read_config(workdir)
    if config is None:
        raise ValueError(f"workdir {workdir} contains no training run")
    return config


def newest_step(workdir: Path) -> int:
    """The step of the newest checkpoint of the run in `workdir`; ValueError where there is none."""
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.latest_step()
    if step is None:
        raise ValueError(f"workdir {workdir} contains no checkpoint")
    return step


def existing_step(workdir: Path, config: ExperimentConfig, step: int | None) -> int:
    """A step of which the run has a checkpoint, the newest for None; ValueError where there is none."""
    with Checkpoints(workdir, config) as checkpoints:
        return checkpoints.existing_step(step)


def holds_average(workdir: Path, step: int) -> bool:
    """Whether a checkpoint has the exponential moving average of the parameters; ValueError for a damaged one."""
    folder = workdir.resolve() / CHECKPOINT_FOLDER / str(step)
    try:
        return "ema" in read_digests(folder)
    except Unusable as error:
        raise ValueError(f"checkpoint {folder} {error}") from error


def read_origin(workdir: Path) -> str | None:
    """Where the tensors of a run come from, as `ORIGIN_FILE` records it; None without a record.

    Raises:
      ValueError: a record that is damaged or no regular file.
    """
    path = workdir / ORIGIN_FILE
    if not path.exists():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("from"), str):
        raise ValueError(f"{path} must hold the address that the run comes from, as 'from', and does not")
    return str(record["from"])


def check_new(workdir: Path) -> None:
    """Raises ValueError unless `workdir` does not exist or is an empty folder."""
    if workdir.is_dir() and not any(workdir.iterdir()):
        return
    if workdir.exists():
        raise ValueError(f"workdir {workdir} must be new or empty, and is not")
