"""The flow, data and devices of a training of a learned inverse, opened and checked before any compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_checks import check_trainable
from starflow_jax.core.config.learned_inverse_config import (
    InversePairsConfig,
    LearnedInverseConfig,
    LearnedInverseExperiment,
)
from starflow_jax.core.config.train_config import TrainConfig
from starflow_jax.data.sources.mixture import components_of, example_spec
from starflow_jax.sharding.mesh import make_layout
from starflow_jax.training.checkpoints.finished_run import run_config
from starflow_jax.training.checkpoints.run_loading import load_run
from starflow_jax.training.inverse.inverse_update import FrozenInputs, Objective
from starflow_jax.training.loop.training_setup import Setup
from starflow_jax.training.step.frozen_text import load_text

MAX_GUIDANCE = 4.0


def default_experiment(config: ExperimentConfig, flow_step: int) -> LearnedInverseExperiment:
    """The training of a learned inverse that suits a run, in the sizes of its flow.

    The network is as wide as the deep block, with two layers for each block. Where the flow reads a condition, it
    imitates the guided inverse for all weights up to 4, and half of its pairs are drawn by the flow.
    """
    flow, train = config.flow, config.train
    guided = flow.text_dim > 0 or flow.num_classes > 0
    width = flow.deep_width or flow.width
    head_dim = flow.head_dim if flow.rope and width % flow.head_dim == 0 else _head_dim(width, flow.axes)
    return LearnedInverseExperiment(
        name=f"{config.name}-inverse",
        network=LearnedInverseConfig(width, head_dim=head_dim, guided=guided, dtype=flow.dtype),
        pairs=InversePairsConfig(max_guidance=MAX_GUIDANCE if guided else 0.0, sampled=0.5 if guided else 0.0),
        train=TrainConfig(
            steps=10_000,
            batch_size=train.batch_size,
            lr=1e-3,
            warmup=100,
            grad_clip=1.0,
            skip_after=None,  # clip, never skip: the loss is a sum over blocks
            ema=0.999,
            log_every=100,
            checkpoint_every=1000,
        ),
        flow_step=flow_step,
        mesh=config.mesh,
        seed=config.seed,
    )


def _head_dim(width: int, axes: int) -> int:
    """The head dimension next to 32 that divides the width and suits the rotary axes."""
    suitable = [d for d in range(4, width + 1, 4) if width % d == 0 and (axes == 2 or d >= 20)]
    check(bool(suitable), f"network.width must be a multiple of 4 for rotary positions, got {width}")
    return min(suitable, key=lambda d: abs(d - 32))


@dataclasses.dataclass(frozen=True, eq=False)
class InverseSetup:
    """The inputs of the training of a learned inverse, besides its training state.

    Attributes:
      objective: the static part.
      frozen: the flow and frozen networks, on the devices.
      training: the data of the run, in batches of the experiment.
    """

    objective: Objective
    frozen: FrozenInputs
    training: Setup

    @classmethod
    def from_run(cls, workdir: Path, experiment: LearnedInverseExperiment) -> InverseSetup:
        """Opens the run in `workdir`.

        Raises:
          ValueError: there is no such run, its files are missing or damaged, or the parts do not fit together.
        """
        check(jax.process_count() == 1, f"learned inverses are trained by one process, got {jax.process_count()}")
        check_trainable(run_config(workdir).flow.quantise, f"workdir {workdir}")  # before the flow is read
        train = experiment.train
        layout = make_layout(experiment.mesh)
        config, _, params, _ = load_run(workdir, layout=layout, step=experiment.flow_step)
        flow = config.flow
        for layers in (experiment.network.layers, experiment.network.clean_layers):
            experiment.network.transformer(flow, layers)  # checks the head dimension
        guided = experiment.pairs.max_guidance > 0
        check(
            not guided or flow.text_dim > 0 or flow.num_classes > 0,
            f"pairs.max_guidance must be 0 for a flow that reads no condition, got {experiment.pairs.max_guidance:g}",
        )
        # The flow's own training fields do not matter here: the data come in batches of the new experiment.
        own = dataclasses.replace(config.train, curriculum=(), accumulate=1, steps=train.steps, warmup=0)
        own = dataclasses.replace(own, batch_size=train.batch_size, language_model=None)
        config = dataclasses.replace(config, train=own, mesh=experiment.mesh, seed=experiment.seed)
        setup = Setup.from_config(config)
        null = _null_states(config, setup) if guided and flow.text_dim else None
        objective = Objective(experiment, setup.config, setup.source.levels, setup.layout)
        setup = setup.on_devices()
        return cls(objective, FrozenInputs(params, setup.encoder, setup.text, null), setup)

    def put(self, batch: Any) -> Any:
        """A batch of the loader on the devices."""
        layout = self.training.layout
        return batch if layout is None else {name: layout.assemble(array) for name, array in batch.items()}


def _null_states(config: ExperimentConfig, setup: Setup) -> jax.Array | None:
    """Text states [1, L, text_dim] of the empty caption; None for labels, whose empty state is zero."""
    text = load_text(config) if setup.text is None else setup.text
    if text is None:
        check(
            not any("text_states" in example_spec(part.source) for part in components_of(setup.source)),
            "pairs.max_guidance above 0 needs data.text_encoder, which gives the states of the empty caption, got None",
        )
        return None
    states: jax.Array = text.states(jnp.asarray(text.empty)[None])
    return states
