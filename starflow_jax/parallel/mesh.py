"""The mesh of devices that a configuration asks for, and whether a model fits it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from starflow_jax.config.checks import check
from starflow_jax.config.flow import FlowConfig
from starflow_jax.config.mesh import AXES, MeshConfig
from starflow_jax.parallel.layout import Layout


def make_layout(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Layout | None:
    """The layout over `devices`, all of this run's where None; None for a single one, which needs none.

    The last axis of the mesh changes fastest, so that neighbours share a sequence, then the channels of a layer, and
    the copies of the parameters lie farthest apart.

    Raises:
      ValueError: axes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    if len(devices) == 1:
        return None
    return Layout(Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES)))


def _arranged(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices in the shape of the mesh; TPUs so that its axes are axes of their torus, along which transfers are fast.

    The numbers of TPUs run host by host, and so zigzag through the torus.
    """
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(tuple(sizes), list(devices), allow_split_physical_axes=True)
    return np.asarray(devices).reshape(sizes)


def check_fit(layout: Layout | None, flow: FlowConfig, batch_size: int, accumulate: int = 1) -> None:
    """Raises ValueError where a flow or a batch does not divide evenly over the mesh."""
    if layout is None:
        return
    shape = layout.mesh.shape
    rows, part = shape["data"] * shape["fsdp"], batch_size // accumulate
    check(
        part % rows == 0,
        f"train.batch_size / train.accumulate must be a multiple of mesh.data x mesh.fsdp = {rows}, got {batch_size} / "
        f"{accumulate} = {part}",
    )
    heads = shape["tensor"] * shape["sequence"]
    transformers = [block for block in flow.blocks if block.layers]
    if flow.denoiser is not None:
        transformers.append(flow.denoiser_transformer)
    for transformer in transformers:
        check(
            transformer.kv_heads % heads == 0,
            f"mesh.tensor x mesh.sequence must divide the heads of every block, got {shape['tensor']} x "
            f"{shape['sequence']} for one of {transformer.kv_heads}",
        )
        check(
            transformer.width * transformer.expansion % shape["tensor"] == 0,
            f"mesh.tensor must divide the channels of every MLP, got {shape['tensor']} for "
            f"{transformer.width * transformer.expansion}",
        )
