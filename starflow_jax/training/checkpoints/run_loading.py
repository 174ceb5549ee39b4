"""Loads a trained flow for sampling and evaluation, as it is stored or quantised while it is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from starflow_jax.core.choices import Quantisation
from starflow_jax.core.config.experiment_config import ExperimentConfig, with_quantise
from starflow_jax.core.request_errors import require
from starflow_jax.core.storage.copies import local_path, without_optimizer
from starflow_jax.flows.parameters import Params, abstract
from starflow_jax.kernels.kernel_choice import CUDNN_PLATFORM, KERNEL_PLATFORMS, device_target
from starflow_jax.nn.stored_kernels import require_qwix, storage
from starflow_jax.porting.tensor_names import unflatten
from starflow_jax.sharding.layout import Layout, located
from starflow_jax.training.checkpoints.manager import Checkpoints
from starflow_jax.training.checkpoints.parts import agreed
from starflow_jax.training.checkpoints.quantised_streams import collected, quantised_streams
from starflow_jax.training.checkpoints.stored_run import stored_run
from starflow_jax.training.checkpoints.streamed import Streamed
from starflow_jax.training.checkpoints.workdir import CHECKPOINT_FOLDER, read_config


def load_run(
    workdir: Path | str,
    *,
    ema: bool = True,
    layout: Layout | None = None,
    step: int | None = None,
    quantise: Quantisation | None = None,
) -> tuple[ExperimentConfig, Any, Params, int]:
    """Loads a trained flow for sampling and evaluation.

    Args:
      workdir: the folder of the run, or its address.
      ema: whether to load the exponential moving average of the parameters if the run keeps one.
      layout: of the devices that the parameters are sharded over, independent of the training; None for one device.
      step: of the checkpoint; None for the newest.
      quantise: how to store the kernels of a float32 run in memory (`FlowConfig.quantise`), which are quantised while
        they are read; None for what the run has.

    Returns:
      The configuration, the flow's definition and parameters (for `flows.parameters.merge`), and the step. On a
      platform without Pallas kernels, `flow.kernels` "pallas" is returned as "auto", and so is "cudnn" without cuDNN.

    Raises:
      RequestError: `quantise` for a run that is stored in another way, or "int8-activations" over several devices.
      ValueError: no run in that folder, or a damaged one; or Qwix is not installed, which quantises a float32 run and
        computes with "int8-activations".
    """
    workdir = local_path(workdir, without_optimizer)
    config = read_config(workdir)
    if config is None or not (workdir / CHECKPOINT_FOLDER).is_dir():
        raise ValueError(f"workdir {workdir} contains no training run")
    stored = config
    if quantise is not None:
        held = config.flow.quantise
        require(
            held is None or storage(held) == storage(quantise),
            "{quantise} must be {0}, as the weights in {1} are stored, got {2!r}",
            "int8 or int8-activations" if held is not None and storage(held) == "int8" else held,
            str(workdir),
            quantise,
        )
        config = with_quantise(config, quantise)
    if config.flow.quantise == "int8-activations":
        require_qwix()  # which the products of such a flow need, beside those that quantise it
    config = _supported(config)
    definition, like = abstract(config.flow, layout)
    if quantise is not None and stored.flow.quantise is None:
        params, step = _quantised(workdir, config, stored, located(layout, like), step, ema=ema)
        return config, definition, params, step
    with Checkpoints(workdir, stored) as checkpoints:
        step = None if step is None else checkpoints.existing_step(step)
        params, step = checkpoints.restore_params(located(layout, like), step, ema=ema and config.train.ema > 0)
    return config, definition, params, step


def _supported(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment without kernels that the platform does not have."""
    platforms = {"pallas": KERNEL_PLATFORMS, "cudnn": (CUDNN_PLATFORM,)}.get(config.flow.kernels)
    if platforms is None or device_target().platform in platforms:
        return config
    return dataclasses.replace(config, flow=dataclasses.replace(config.flow, kernels="auto"))


def _quantised(
    workdir: Path, config: ExperimentConfig, stored: ExperimentConfig, like: Params, step: int | None, *, ema: bool
) -> tuple[Params, int]:
    """The parameters of a float32 run, quantised on the host, on the devices of `like`; and their step.

    Beside the quantised ones, a float32 parameter of a block, of all its layers, is in memory at a time.
    """
    run = stored_run(workdir, stored, step, ema=ema and config.train.ema > 0)
    streams = quantised_streams(config.flow, run.streams)

    def read() -> Params:
        params = jax.tree.map(_placed, like, unflatten(streams))
        run.check()
        return params

    return agreed(run.folder, read), run.step


def _placed(leaf: jax.ShapeDtypeStruct, stream: Streamed) -> jax.Array:
    """A parameter read to its end, with the sharding of `leaf`; without one, on this process's first device."""
    value = collected(stream)
    if leaf.sharding is None:
        return jax.device_put(value, jax.local_devices()[0])
    return jax.make_array_from_callback(value.shape, leaf.sharding, lambda part: value[part])
