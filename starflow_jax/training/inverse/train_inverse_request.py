"""The request of a training of a learned inverse, as one checked value."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from starflow_jax.core.config.learned_inverse_config import LearnedInverseExperiment


@dataclasses.dataclass(frozen=True)
class TrainInverseRequest:
    """A request to train the learned inverse of a finished run, or to resume that.

    Attributes:
      workdir: the folder of the run; its subfolder `inverse` receives the training.
      experiment: the training, see `inverse_setup.default_experiment`.
      progress: whether to show a progress bar, or lines of text where standard error is not a terminal.
    """

    workdir: Path
    experiment: LearnedInverseExperiment
    progress: bool = True
