"""The state of a run that is passed to callbacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.data import Source
from starflow_jax.training.step.optimizer import Params


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a run after some update.

    Attributes:
      config, workdir, source: configuration, folder and training data of the run.
      step: number of updates made.
      definition, params: of `flows.parameters.merge`; the exponential moving average where the run keeps one. The next
        update reuses these buffers, so a callback that stores them must copy them.
    """

    config: ExperimentConfig
    workdir: Path
    source: Source
    step: int
    definition: Any
    params: Params


# A callback may return scalars to record, such as {"held_out_bits_per_dim": 2.1}.
Callback = Callable[[Snapshot], Mapping[str, float] | None]
