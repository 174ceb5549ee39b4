"""Ahead-of-time compilation for TPUs that are not attached, with the TPU compiler of libtpu, on any machine.

TPU hosts run the same compiler, so the memory and collectives that it reports are those of the real run. It needs
neither a network nor a device.
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

from starflow_jax.core.config.mesh_config import AXES, MeshConfig
from starflow_jax.costs.chips import Topology
from starflow_jax.sharding.layout import Layout
from starflow_jax.sharding.mesh import make_layout

# libtpu reads these variables when it is loaded: no metadata server, several processes on one machine, little logging.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any value will do: topologies are requested by name
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a program on one device, in bytes.

    Attributes:
      arguments: size of the program's inputs, including outputs that reuse their memory.
      temporaries: everything else that is allocated at the peak.
      usable: memory of the device that programs may use.
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
        """Bytes by which the peak exceeds the usable memory; 0 if the program fits."""
        return max(self.peak - self.usable, 0.0)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Result of a compilation: memory, HLO text ("" if the program does not fit), and compile time in seconds."""

    memory: Memory
    text: str
    seconds: float


def tpu_layout(topology: Topology, mesh: MeshConfig) -> Layout:
    """Builds the layout over the devices of a TPU topology, all its slices.

    Raises:
      ValueError: libtpu is not installed or does not know the topology, or the mesh does not match the device count.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "planning for a TPU needs its compiler, libtpu, which is not installed: pip install 'starflow-jax[tpu]'"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    # A host has 2 x 2 chips if the topology is divisible by that, else one.
    if any(size % bound for size, bound in zip(topology.shape, (2, 2, 1), strict=False)):
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        devices = topologies.get_topology_desc(name, platform="tpu", **options).devices
    # JAX raises NotImplementedError for libtpu's UNIMPLEMENTED, which means an unknown chip or shape.
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise ValueError(f"topology {name} is refused by libtpu: {str(error).splitlines()[0]}") from error
    axes = (jax.sharding.AxisType.Auto,) * len(AXES)
    alone = jax.sharding.Mesh(np.asarray(devices[:1]).reshape((1,) * len(AXES)), AXES, axis_types=axes)
    return make_layout(mesh, devices) or Layout(alone)


def compile_ahead(lowered: jax.stages.Lowered, topology: Topology, arguments: float) -> Compiled:
    """Compiles a program that was lowered for the devices of `topology`.

    For a program that exceeds the device memory, the result has an empty text.

    Args:
      lowered, topology: the program and its devices.
      arguments: size of the program's arguments on one device, in bytes.
    """
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        limits = exceeded(str(error))
        if limits is None:
            raise
        needed, available = limits
        return Compiled(Memory(arguments, needed - arguments, available), "", time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory = Memory(arguments, max(_peak(compiled, topology) - arguments, 0.0), topology.chip.usable)
    return Compiled(memory, compiled.as_text() or "", seconds)


def _peak(compiled: jax.stages.Compiled, topology: Topology) -> float:
    """Bytes of a device that a program takes, arguments included."""
    analysis: Any = compiled.memory_analysis()
    if topology.chip.kind == "tpu":  # its compiler compares this figure with the available memory
        return float(analysis.peak_memory_in_bytes)
    # A GPU's program allocates its temporaries at once, beside arguments and results.
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return float(analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes)


def exceeded(message: str) -> tuple[float, float] | None:
    """Parses bytes required and available from the compiler's out-of-memory error; None for any other message."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    size = r"([\d.]+)([KMGT]?)B?"
    for pattern in (
        rf"required for HLO temporaries \({size}\) exceeds available HBM \({size}\)",  # includes the arguments
        rf"Used {size} of {size} hbm",
    ):
        match = re.search(pattern, message)
        if match:
            needed, available, *_ = (float(match.group(n)) * _UNITS[match.group(n + 1)] for n in (1, 3))
            return needed, available
    return None


def argument_bytes(tree: Any) -> float:
    """Size in bytes, on one device, of program arguments given as ShapeDtypeStructs with shardings."""
    return float(
        sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    )
