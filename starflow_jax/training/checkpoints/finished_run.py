"""The configuration and the newest checkpoint of a run that another training starts from."""

from __future__ import annotations

from pathlib import Path

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.workdir import read_config


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
