"""The request of a training run: all that `starflow train` accepts, as one checked value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from starflow_jax.core.choices import ResumePolicy, choices
from starflow_jax.core.config.checks import check_choice, check_real
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.request_errors import require
from starflow_jax.data import Source
from starflow_jax.training.loop.callbacks import Callback
from starflow_jax.training.loop.profile import Window
from starflow_jax.training.loop.weights_and_biases import check_installed


@dataclasses.dataclass(frozen=True, eq=False)
class TrainRequest:
    """A request to train an experiment in a folder, or to resume training there.

    Attributes:
      config: the experiment.
      workdir: new or empty folder, or the folder of a run of the same configuration.
      resume: the policy of resuming, see `training.checkpoints.resume`.
      init_from: folder of a run whose parameters initialise a new run; ignored when a run is resumed.
      callbacks: called every `config.train.sample_every` updates and after the last one.
      evaluations: called every `config.train.evaluate_every` updates and after the last one.
      source: training data to use instead of those that `config.data` names.
      progress: whether to show a progress bar, or lines of text where standard error is not a terminal.
      grace: seconds after SIGTERM within which the process ends, see `training.loop.signals`; None for no limit.
      profile: updates to trace into `workdir/profile`.
      wandb: Weights & Biases project to which the metrics are also sent.
      peak: FLOP/s of all devices together, used for the model FLOPs utilisation; None for the published figure.

    Raises:
      ValueError: a field out of range, or `wandb` where the library is not installed.
    """

    config: ExperimentConfig
    workdir: Path
    resume: ResumePolicy = "latest"
    init_from: Path | str | None = None
    callbacks: Sequence[Callback] = ()
    evaluations: Sequence[Callback] = ()
    source: Source | None = None
    progress: bool = True
    grace: float | None = None
    profile: Window | None = None
    wandb: str | None = None
    peak: float | None = None

    def __post_init__(self) -> None:
        check_choice("resume", self.resume, choices(ResumePolicy))
        for name in ("grace", "peak"):
            if getattr(self, name) is not None:
                check_real(name, getattr(self, name), minimum=0.0)
        if self.profile is not None:
            steps = self.config.train.steps
            require(
                self.profile.last <= steps, "{profile} must end at train.steps={0}, got {1}", steps, str(self.profile)
            )
        if self.wandb is not None:
            check_installed()
