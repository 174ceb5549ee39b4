"""Builds the mesh of a configuration, and checks that a model fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.flow_config import FlowConfig
from starflow_jax.core.config.mesh_config import AXES, MeshConfig
from starflow_jax.sharding.layout import BATCH, Layout


def make_layout(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Layout | None:
    """The layout over `devices` (None: all devices); None for a single device.

    The last axis of the mesh changes fastest, so that neighbouring devices share a sequence, then the channels of a
    layer, and replicas of the parameters are farthest apart, those in other slices most of all. TPUs name their slice.
    Of other devices, a slice is a number of consecutive ones: whole processes, or equal parts of one, which are
    numbered node by node under Slurm.

    Raises:
      ValueError: the product of the axes is not the number of devices, or `mesh.slices` not the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    if len(devices) == 1:
        return None
    return Layout(Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES)))


def _arranged(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in the shape of the mesh.

    For TPUs, mesh axes are axes of a slice's torus, along which transfers are fast; the order of their ids, host by
    host, does not follow the torus.
    """
    slices, *inside = sizes
    if devices[0].platform != "tpu":
        processes = len({device.process_index for device in devices})
        check(
            slices % processes == 0 or processes % slices == 0,
            f"mesh.slices must divide the number of processes, {processes}, or be a multiple of it, got {slices}",
        )
        return np.asarray(devices).reshape(sizes)
    # Devices of a topology that is not attached have no index of a slice if there is one slice.
    found = len({getattr(device, "slice_index", 0) for device in devices})
    check(slices == found, f"mesh.slices must be the number of slices that the TPUs are in, {found}, got {slices}")
    if slices == 1:
        return mesh_utils.create_device_mesh(tuple(sizes), list(devices), allow_split_physical_axes=True)
    between = (slices, *(1 for _ in inside))
    return mesh_utils.create_hybrid_device_mesh((1, *inside), between, list(devices), allow_split_physical_axes=True)


def check_fit(
    layout: Layout | None,
    flow: FlowConfig,
    batch_size: int,
    accumulate: int = 1,
    shape: Sequence[int] | None = None,
    *,
    field: str = "train.batch_size",
) -> None:
    """Raises ValueError where a flow or a batch is not evenly divisible over the mesh.

    Args:
      layout: over the mesh; None passes every check.
      flow: its configuration.
      batch_size, accumulate: rows per update, and the number of parts that they are processed in.
      shape: of an image or clip, [H, W, C] or [T, H, W, C]; None leaves the division of tokens unchecked.
      field: name of the field with the batch size, for the message.
    """
    if layout is None:
        return
    if shape is not None:
        _check_tokens(layout.mesh.shape["sequence"], flow, shape)
    axes = layout.mesh.shape
    rows, part = layout.size(BATCH), batch_size // accumulate
    check(
        part % rows == 0,
        f"{field} / train.accumulate must be a multiple of {batch_axes(axes)} = {rows}, got {batch_size} / "
        f"{accumulate} = {part}",
    )
    heads = axes["tensor"] * axes["sequence"]
    transformers = [block for block in flow.blocks if block.layers]
    if flow.denoiser is not None:
        transformers.append(flow.denoiser_transformer)
    for transformer in transformers:
        check(
            transformer.kv_heads % heads == 0,
            f"mesh.tensor x mesh.sequence must divide the heads of every block, got {axes['tensor']} x "
            f"{axes['sequence']} for one of {transformer.kv_heads}",
        )
        check(
            transformer.width * transformer.expansion % axes["tensor"] == 0,
            f"mesh.tensor must divide the channels of every MLP, got {axes['tensor']} for "
            f"{transformer.width * transformer.expansion}",
        )


def batch_axes(sizes: Mapping[str, int]) -> str:
    """The product of mesh axes that a batch is divided over, for messages."""
    return " x ".join(f"mesh.{name}" for name in BATCH if name != "slices" or sizes[name] > 1)


def _check_tokens(parts: int, flow: FlowConfig, shape: Sequence[int]) -> None:
    """Raises ValueError unless the number of tokens of each block, text included, is a multiple of `parts`."""
    *front, rows, columns, _ = shape
    frame = rows * columns // flow.patch_size**2
    frames = front[0] if front else None
    for index, block in enumerate(flow.blocks):
        if not block.layers:
            continue
        tokens = frame if frames is None or flow.is_local(index) else frames * frame
        text = flow.text_length if flow.text_dim and flow.is_conditioned(index) else 0
        check(
            (tokens + text) % parts == 0,
            f"mesh.sequence must divide the tokens that block {index} reads, {tokens} and {text} of text (which "
            f"flow.text_length may change), got {parts}",
        )
