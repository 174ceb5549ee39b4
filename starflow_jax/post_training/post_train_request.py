"""The request of post-training, as one checked value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.post_training_config import PostTrainingExperiment
from starflow_jax.evaluation.rewards.reward import RewardInputs


@dataclasses.dataclass(frozen=True)
class PostTrainRequest:
    """A request to train a finished flow on a reward or on pairs, or to resume that.

    Attributes:
      workdir: the folder of the base run, which stays as it is.
      out: the folder of the run that is made: new, empty, or that of the same post-training.
      experiment: the training, see `post_training_setup.default_experiment`.
      rewards: functions of `RewardInputs` by the names that `experiment.reward` and `experiment.judges` have, in place
        of registered ones and of files; the same functions must be given to resume.
      progress: whether to show a progress bar, or lines of text where standard error is not a terminal.
    """

    workdir: Path
    out: Path
    experiment: PostTrainingExperiment
    rewards: Mapping[str, Callable[[RewardInputs], Any]] = dataclasses.field(default_factory=dict)
    progress: bool = True
