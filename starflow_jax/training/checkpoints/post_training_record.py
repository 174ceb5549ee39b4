"""The record of post-training in the folder of its run, beside the configuration of the flow."""

from __future__ import annotations

from pathlib import Path

from starflow_jax.core.atomic_writing import write_text
from starflow_jax.core.config.build import from_json, to_json
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.post_training_config import PostTrainingExperiment
from starflow_jax.core.regular_files import read_text
from starflow_jax.training.checkpoints.workdir import claim_workdir, first_difference, read_config

RECORD_FILE = "post_training.json"


def read_post_training(workdir: Path) -> PostTrainingExperiment | None:
    """The post-training that made the run in `workdir`; None for a run of another training, or for no run.

    Raises:
      ValueError: the file is not such a record.
    """
    path = Path(workdir) / RECORD_FILE
    if not path.is_file():
        return None
    try:
        return from_json(read_text(path), PostTrainingExperiment)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not the record of post-training: {error}") from error


def claim_post_training(workdir: Path, experiment: PostTrainingExperiment, config: ExperimentConfig) -> None:
    """Creates the folder of a run, or checks that the run in it is of the same post-training.

    Raises:
      ValueError: a folder with other contents, or a path that cannot be written.
    """
    old = read_post_training(workdir)
    check(
        old is not None or read_config(workdir) in (None, config),
        f"workdir {workdir} contains a run that is not of post-training",
    )
    difference = None if old is None else first_difference(old, experiment)
    if difference is not None:
        name, before, now = difference
        raise ValueError(
            f"workdir {workdir} contains post-training with another configuration: {name} is {before!r} in the folder "
            f"and {now!r} in this call"
        )
    claim_workdir(workdir, config)
    write_text(Path(workdir) / RECORD_FILE, to_json(experiment))
