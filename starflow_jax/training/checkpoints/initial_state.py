"""The initial state of a run: initialised from the seed, with the deep block of a language model if the experiment
names one, or with the parameters of another run, such as a ported model.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_checks import check_trainable
from starflow_jax.core.storage.copies import local_path, without_optimizer
from starflow_jax.flows.parameters import overlaid
from starflow_jax.porting.gemma_layers import check_deep_block, read_deep_block
from starflow_jax.sharding.layout import Layout
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.parts import Unusable, read_digests
from starflow_jax.training.checkpoints.run_loading import load_run
from starflow_jax.training.checkpoints.workdir import read_config
from starflow_jax.training.step.train_step import TrainState, init_state, state_of

_IRRELEVANT = ("dropout", "dtype", "matmul_precision", "remat", "kernels")  # to the parameters of a flow


def holds_parameters_alone(checkpoints: Checkpoints) -> bool:
    """Whether the newest checkpoint holds parameters without moments, like that of a ported model."""
    step = checkpoints.latest_step()
    try:
        return step == 0 and "opt_state" not in read_digests(checkpoints.folder / "0")
    except Unusable:
        return False  # reported when it is restored


def check_start(config: ExperimentConfig) -> None:
    """Raises ValueError if `train.language_model` cannot initialise the deep block; reads its configuration only."""
    train = config.train
    if train.language_model is not None:
        check_deep_block(local_path(train.language_model), config.flow, differs=train.language_model_differs)


def check_source(config: ExperimentConfig, source: Path | str) -> None:
    """Raises ValueError unless `source` is the folder of a run whose parameters are those of this flow."""
    other = read_config(local_path(source, without_optimizer))
    check(other is not None, f"--init-from must be the folder of a run, and {source} contains no training run")
    assert other is not None
    check(
        config.train.language_model is None,
        f"train.language_model must be None with --init-from, got {config.train.language_model!r}",
    )
    check_trainable(other.flow.quantise, f"--init-from {source}")
    for name in other.flow.__dataclass_fields__:
        a, b = getattr(other.flow, name), getattr(config.flow, name)
        check(
            a == b or name in _IRRELEVANT,
            f"flow.{name} must be that of {source}, {a!r}, to start from its parameters, got {b!r}",
        )


def first_state(config: ExperimentConfig, source: Path | str | None, layout: Layout | None) -> TrainState:
    """The state before the first update: initialised from the seed, or with the parameters of a run.

    With `train.language_model` the layers in that folder initialise the deep block.

    Args:
      source: folder of a run, whose exponential moving average is used if it has one; None for the seed.

    Raises:
      ValueError: no run in that folder, a damaged one, or one of another flow; see also
        `porting.gemma_layers.read_deep_block`.
    """
    if source is None:
        state = _initialised(config, layout)
        # on the same device as a restored state, so that both run the same compiled program
        return state if layout is not None else jax.device_put(state, jax.local_devices()[0])
    check_source(config, source)
    params = load_run(source, layout=layout)[2]
    if layout is None:
        return jax.device_put(state_of(config, params), jax.local_devices()[0])
    shardings = layout.tree(jax.eval_shape(lambda: state_of(config, params)))
    return jax.jit(state_of, static_argnums=0, out_shardings=shardings, donate_argnums=1)(config, params)


def _initialised(config: ExperimentConfig, layout: Layout | None) -> TrainState:
    train = config.train
    if train.language_model is None:
        return init_state(config, layout)
    layers = read_deep_block(local_path(train.language_model), config.flow, differs=train.language_model_differs)
    state = init_state(config, layout)
    replacement: Any = {"blocks": {str(config.flow.num_blocks - 1): {"transformer": layers}}}
    ema = None if state.ema is None else _replaced(state.ema, replacement)
    return dataclasses.replace(state, params=_replaced(state.params, replacement), ema=ema)


def _replaced(params: Any, replacement: Any) -> Any:
    """Parameters with the arrays of `replacement`, each with the sharding of the array that it replaces."""

    def put(before: jax.Array, value: np.ndarray | jax.Array) -> jax.Array:
        if value is before:
            return before
        return jax.make_array_from_callback(value.shape, before.sharding, lambda index: np.asarray(value[index]))

    return jax.tree.map(put, params, overlaid(params, replacement))
