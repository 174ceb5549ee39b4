"""Adapts a mesh to the devices that are there, such as those that remain when a host is lost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from starflow_jax.core.config.checks import check
from starflow_jax.core.config.mesh_config import MeshConfig


def adapted(
    mesh: MeshConfig,
    batch_sizes: Sequence[int],
    accumulate: int,
    devices: int,
    *,
    processes: int = 1,
    slices: int | None = None,
) -> tuple[MeshConfig, int]:
    """A mesh and a number of microbatches for this number of devices, with the same global batch.

    Tensor and sequence parallelism stay as they are, since the model must fit them. A parameter is divided over at
    least as many devices as before if there are enough. The number of microbatches grows so far that the rows of a
    device divide evenly and, where the mesh names its sizes, are no more than before; updates are those of the other
    mesh up to rounding (dropout masks follow the microbatches).

    Args:
      mesh: of the configuration; an axis of -1 takes the remaining devices, so that their number before is not known.
      batch_sizes: rows of an update, of every stage and part of the data.
      accumulate: number of microbatches of the configuration.
      devices: number of devices.
      processes: number of processes, which slices are made of, or which are in one.
      slices: number of slices that the devices are in; None where devices do not say.

    Raises:
      ValueError: no mesh of all devices divides the batch.
    """
    inner = mesh.tensor * mesh.sequence
    check(
        mesh.tensor > 0 and mesh.sequence > 0,
        f"mesh.tensor and mesh.sequence must be numbers of devices to be adapted, got {mesh.tensor} and "
        f"{mesh.sequence}",
    )
    check(
        devices % inner == 0,
        f"mesh.tensor x mesh.sequence = {inner} must divide the number of devices, got {devices}",
    )
    rows = devices // inner
    for size in batch_sizes:
        fitting = [count * inner for count in range(1, rows + 1) if size % count == 0]
        check(
            size % rows == 0,
            f"train.batch_size must be a multiple of the {rows} parts that {devices} devices divide it into, got "
            f"{size}; {fitting[-1]} devices would fit",
        )
    if slices is None:
        whole = [n for n in range(1, mesh.slices + 1) if n % processes == 0 or processes % n == 0]
        number = max(n for n in whole if rows % n == 0)
    else:
        number = slices if rows % slices == 0 else 1
    inside = rows // number
    wanted = inside if mesh.fsdp == -1 else mesh.fsdp
    fsdp = min(count for count in range(1, inside + 1) if inside % count == 0 and (count >= wanted or count == inside))
    before = None if -1 in (mesh.data, mesh.fsdp) else mesh.slices * mesh.data * mesh.fsdp
    largest = max(batch_sizes) // rows if before is None else max(1, max(batch_sizes) // (accumulate * before))
    parts = math.gcd(*(size // rows for size in batch_sizes))  # microbatches that divide the rows of every batch
    counts = [count for count in range(1, parts + 1) if parts % count == 0 and count >= min(accumulate, parts)]
    count = next((count for count in counts if max(batch_sizes) // (rows * count) <= largest), counts[-1])
    return dataclasses.replace(mesh, slices=number, data=inside // fsdp, fsdp=fsdp), count
