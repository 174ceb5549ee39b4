"""The folder of a learned inverse, beside the checkpoints of the run whose flow it inverts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.learned_inverse_config import LearnedInverseExperiment
from starflow_jax.flows.learned_parameters import LearnedParams, abstract_learned
from starflow_jax.sharding.layout import Layout, located
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, read_config

INVERSE_FOLDER = "inverse"


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedInverse:
    """A trained learned inverse.

    Attributes:
      experiment: its training; step: number of updates of the checkpoint.
      params: its averaged parameters.
    """

    experiment: LearnedInverseExperiment
    params: LearnedParams
    step: int


def has_inverse(workdir: Path) -> bool:
    """Whether the folder of a run contains a learned inverse with a checkpoint."""
    folder = Path(workdir) / INVERSE_FOLDER / CHECKPOINT_FOLDER
    return folder.is_dir() and any(path.name.isdecimal() and path.is_dir() for path in folder.iterdir())


def load_inverse(workdir: Path, config: ExperimentConfig, layout: Layout | None = None) -> LoadedInverse:
    """Loads the learned inverse of a run.

    Args:
      workdir: the folder of the run; config: its configuration.
      layout: of the devices that the parameters are sharded over; None for one device.

    Raises:
      ValueError: there is none, it is damaged, or it does not fit the flow.
    """
    folder = Path(workdir) / INVERSE_FOLDER
    if not has_inverse(workdir):
        raise ValueError(
            f"workdir {workdir} contains no learned inverse, which this solver starts from; "
            f"starflow train-inverse --workdir {workdir} trains one"
        )
    experiment = read_config(folder, LearnedInverseExperiment)
    if experiment is None:
        raise ValueError(f"{folder} contains checkpoints and no configuration")
    _, like = abstract_learned(config.flow, experiment.network, layout)
    with Checkpoints(folder, experiment) as checkpoints:
        params, step = checkpoints.restore_params(located(layout, like), ema=experiment.train.ema > 0)
    return LoadedInverse(experiment, LearnedParams(params, experiment.network, experiment.pairs.max_guidance), step)
