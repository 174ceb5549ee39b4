"""What all pages and visitors of a studio share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from starflow_jax.studio.background_work import Device
from starflow_jax.studio.familiarity import Familiarity
from starflow_jax.studio.opened_model import Checkpoints, OpenedModel
from starflow_jax.studio.training_progress import TrainingProgress


@dataclasses.dataclass(frozen=True, eq=False)
class Studio:
    """A loaded model and where its visitors' files are.

    Attributes:
      checkpoints: the model, and its other checkpoints; uploads: the folder of all dropped files.
      familiarity: compares examples with those of the run; progress: of the training.
      device: held while the device works for a visitor.
    """

    checkpoints: Checkpoints
    uploads: Path
    familiarity: Familiarity
    progress: TrainingProgress
    device: Device = dataclasses.field(default_factory=Device)

    @classmethod
    def of(cls, checkpoints: Checkpoints, uploads: Path) -> Studio:
        """The studio of a model."""
        model = checkpoints.first
        return cls(checkpoints, uploads, Familiarity(model), TrainingProgress(model.run.workdir))

    @property
    def model(self) -> OpenedModel:
        """The model."""
        return self.checkpoints.first
