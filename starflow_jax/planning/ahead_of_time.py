"""Programs compiled ahead of time for TPUs that are not there, by the TPU compiler of libtpu on any machine.

The compiler is the one that runs on the TPU hosts, so what it says about memory and collectives is what they will do.
It needs no network and no device.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import time
from typing import Any

import jax
import numpy as np

from starflow_jax.core.config.mesh import AXES, MeshConfig
from starflow_jax.costs.chips import Topology
from starflow_jax.sharding.layout import Layout
from starflow_jax.sharding.mesh import make_layout

# Read when libtpu is loaded: ask no metadata server, share the machine with other processes, keep quiet.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any: topologies are named
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      arguments: of the program's inputs; outputs that reuse their memory are in them.
      temporaries: everything else it holds at its fullest.
      usable: what programs may use of the device.
    """

    arguments: float
    temporaries: float
    usable: float

    @property
    def peak(self) -> float:
        return self.arguments + self.temporaries

    @property
    def fits(self) -> bool:
        return self.peak <= self.usable

    @property
    def short(self) -> float:
        """Bytes missing, 0 where it fits."""
        return max(self.peak - self.usable, 0.0)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said: memory, the program's text ("" where it did not fit), and the seconds it took."""

    memory: Memory
    text: str
    seconds: float


def tpu_layout(topology: Topology, mesh: MeshConfig) -> Layout:
    """The layout over the devices of a TPU topology.

    Raises:
      ValueError: no libtpu, a topology that it does not know, or a mesh that does not multiply to its devices.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "planning for a TPU needs its compiler, libtpu, which is not installed: pip install 'starflow-jax[tpu]'"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    # Hosts hold 2 x 2 chips where the topology allows, else one.
    if any(size % bound for size, bound in zip(topology.shape, (2, 2, 1), strict=False)):
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
    # The second is what JAX makes of libtpu's UNIMPLEMENTED, a kind or a shape that it does not know.
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(f"topology {name} is refused by libtpu: {str(error).splitlines()[0]}") from error
    axes = (jax.sharding.AxisType.Auto,) * len(AXES)
    alone = jax.sharding.Mesh(np.asarray(devices[:1]).reshape((1,) * len(AXES)), AXES, axis_types=axes)
    return make_layout(mesh, devices) or Layout(alone)


def compile_ahead(lowered: jax.stages.Lowered, topology: Topology, arguments: float) -> Compiled:
    """Compiles a program that was lowered for the devices of `topology`.

    A program that needs more memory than there is comes back without a text.

    Args:
      lowered, topology: the program and its devices.
      arguments: bytes of its arguments on one device.
    """
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = exceeded(str(error))
        if found is None:
            raise
        needed, there = found
        return Compiled(Memory(arguments, needed - arguments, there), "", time.perf_counter() - begun)
    seconds = time.perf_counter() - begun
    said: Any = compiled.memory_analysis()
    # Of the compiler's figures this is the one that it holds against the memory there is, arguments included.
    memory = Memory(arguments, max(float(said.peak_memory_in_bytes) - arguments, 0.0), topology.chip.usable)
    return Compiled(memory, compiled.as_text() or "", seconds)


def exceeded(message: str) -> tuple[float, float] | None:
    """Bytes needed and bytes there, as the compiler's refusal of a program that is too large says; None for others."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    size = r"([\d.]+)([KMGT]?)B?"
    for pattern in (
        rf"required for HLO temporaries \({size}\) exceeds available HBM \({size}\)",  # arguments included
        rf"Used {size} of {size} hbm",
    ):
        found = re.search(pattern, message)
        if found:
            needed, there, *_ = (float(found.group(n)) * _UNITS[found.group(n + 1)] for n in (1, 3))
            return needed, there
    return None


def argument_bytes(tree: Any) -> float:
    """Bytes of a program's arguments on one device, of ShapeDtypeStructs with shardings."""
    return float(
        sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    )
