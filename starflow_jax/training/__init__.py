"""Training: from a configuration to checkpoints and curves.

- `distributed`: decisions that the processes of a run take together.
- `step`: one update as pure functions: inputs, losses, gradients, optimizer.
- `checkpoints`: writes, verifies, restores and retains training states; owns the layout of a run's folder.
- `loop`: the training loop: calls the update, records metrics, saves, stops on request.
- `inverse`: trains the learned inverse of a finished run.
- `latent_encoding`: writes the latents of a data source to files. `run_calibration`: measures a trained run for the
  automatic solver.

Each of the first four imports only those before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starflow_jax.core.deferred_names import deferred_names

if TYPE_CHECKING:
    from starflow_jax.training.checkpoints.manager import Checkpoints, abstract_state
    from starflow_jax.training.checkpoints.run_loading import load_run
    from starflow_jax.training.loop.callbacks import Callback, Snapshot
    from starflow_jax.training.loop.curves import plot_curves
    from starflow_jax.training.loop.train_request import TrainRequest
    from starflow_jax.training.loop.training_run import TrainResult, train
    from starflow_jax.training.step.inputs import condition, open_source
    from starflow_jax.training.step.learning_rate_schedule import LearningRateSchedule
    from starflow_jax.training.step.optimizer import apply_updates, init_optimizer
    from starflow_jax.training.step.train_step import (
        Losses,
        TrainState,
        init_state,
        loss_and_gradients,
        train_step,
        train_steps,
    )

__all__ = [
    "Callback",
    "Checkpoints",
    "LearningRateSchedule",
    "Losses",
    "Snapshot",
    "TrainRequest",
    "TrainResult",
    "TrainState",
    "abstract_state",
    "apply_updates",
    "condition",
    "init_optimizer",
    "init_state",
    "load_run",
    "loss_and_gradients",
    "open_source",
    "plot_curves",
    "train",
    "train_step",
    "train_steps",
]

__getattr__ = deferred_names(
    __name__,
    {
        "Checkpoints": ".checkpoints.manager",
        "abstract_state": ".checkpoints.manager",
        "load_run": ".checkpoints.run_loading",
        "Callback": ".loop.callbacks",
        "Snapshot": ".loop.callbacks",
        "plot_curves": ".loop.curves",
        "TrainRequest": ".loop.train_request",
        "TrainResult": ".loop.training_run",
        "train": ".loop.training_run",
        "condition": ".step.inputs",
        "open_source": ".step.inputs",
        "LearningRateSchedule": ".step.learning_rate_schedule",
        "apply_updates": ".step.optimizer",
        "init_optimizer": ".step.optimizer",
        "Losses": ".step.train_step",
        "TrainState": ".step.train_step",
        "init_state": ".step.train_step",
        "loss_and_gradients": ".step.train_step",
        "train_step": ".step.train_step",
        "train_steps": ".step.train_step",
    },
)
