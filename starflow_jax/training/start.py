"""The state that a run begins with: drawn from the seed, its deep block perhaps from a language model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from starflow_jax.config.experiment import ExperimentConfig
from starflow_jax.flows.parameters import overlaid
from starflow_jax.parallel.layout import Layout
from starflow_jax.porting.gemma import check_deep_block, read_deep_block
from starflow_jax.training.step import TrainState, init_state


def start_state(config: ExperimentConfig, layout: Layout | None = None) -> TrainState:
    """`init_state`, with the layers of `train.language_model` in the deep block where that is a folder.

    Raises:
      ValueError: see `porting.gemma.read_deep_block`.
    """
    train = config.train
    if train.language_model is None:
        return init_state(config, layout)
    layers = read_deep_block(Path(train.language_model), config.flow, differs=train.language_model_differs)
    state = init_state(config, layout)
    inside: Any = {"blocks": {str(config.flow.num_blocks - 1): {"transformer": layers}}}
    ema = None if state.ema is None else _replaced(state.ema, inside)
    return dataclasses.replace(state, params=_replaced(state.params, inside), ema=ema)


def check_start(config: ExperimentConfig) -> None:
    """Raises ValueError as `start_state` does, having read the configuration of the language model only."""
    train = config.train
    if train.language_model is not None:
        check_deep_block(Path(train.language_model), config.flow, differs=train.language_model_differs)


def _replaced(params: Any, inside: Any) -> Any:
    """Parameters with the arrays of `inside`, each where the one before it lay."""

    def put(before: jax.Array, value: np.ndarray | jax.Array) -> jax.Array:
        if value is before:
            return before
        return jax.make_array_from_callback(value.shape, before.sharding, lambda place: np.asarray(value[place]))

    return jax.tree.map(put, params, overlaid(params, inside))
