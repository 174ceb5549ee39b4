"""Training: from a configuration to checkpoints and curves.

- `schedule`, `optimizer`: the learning rate; AdamW in two groups, clipping, skipping, running mean.
- `warp`: random distortions of training images.
- `inputs`: from the loader's integers to noisy pixels and a condition.
- `encoding`: latents of a source, computed once; `frozen`: what encodes inside the step instead.
- `step`: losses and gradients, one update, several updates in one program.
- `loop`: the run. `signals`, `agreement`: how it stops. `skipping`, `rate`, `progress`, `profile`: what it tells.
- `workdir`, `metrics`, `plots`, `weights_and_biases`: what it leaves behind.
- `checkpoint`: state and place in the data. `checkpoint_parts`, `digests`: its parts, and whether they are whole.
  `resume`, `retention`: which one to go on from, which ones to keep. `inventory`: what lies in the folder.
"""

from starflow_jax.training.checkpoints.manager import Checkpoints, abstract_state, load_run
from starflow_jax.training.loop.curves import plot_curves
from starflow_jax.training.loop.run import Callback, Snapshot, TrainResult, train
from starflow_jax.training.step.inputs import condition, open_source
from starflow_jax.training.step.optimizer import apply_updates, init_optimizer
from starflow_jax.training.step.schedule import CosineSchedule
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
    "CosineSchedule",
    "Losses",
    "Snapshot",
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
