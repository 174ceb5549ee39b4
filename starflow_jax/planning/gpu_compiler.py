"""XLA's compiler for NVIDIA GPUs that are not attached, from JAX's CUDA plugin, on any machine.

A GPU is described to the compiler by the published facts about it, and compiled for without a driver. Two things differ
from a machine with the GPU: the compiler cannot time variants of its kernels and takes the default of each, and what a
library computes (products, cuDNN's attention) is a call, of whose inner workspace the program says nothing.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os

import jax
import numpy as np

from starflow_jax.core.config.mesh_config import AXES, MeshConfig
from starflow_jax.costs.chips import Topology
from starflow_jax.kernels.cuda_libraries import cuda_libraries
from starflow_jax.sharding.layout import Layout
from starflow_jax.sharding.mesh import make_layout

# The plugin, the compiler inside it, and NVIDIA's compiler of what XLA generates.
_MODULES = ("jax_cuda12_plugin", "jax_plugins.xla_cuda12", "nvidia.cuda_nvcc")
# The plugin would look for the libraries that a program is run with.
_ENVIRONMENT = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
NEEDED = "pip install 'starflow-jax[gpu-compiler]'"
# How a compiled program calls cuDNN's attention.
CUDNN_CALL = "__cudnn$fmha"


@dataclasses.dataclass(frozen=True)
class GPUFacts:
    """What the compiler is told about a GPU, from NVIDIA's white papers and the CUDA programming guide.

    Attributes:
      name: as its driver gives it.
      capability: compute capability, major and minor.
      cores: streaming multiprocessors; lanes: float32 units of each; clock: their highest rate in GHz.
      shared, shared_block: KiB of shared memory of a multiprocessor, and of one block; cache: MiB of the second level.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    clock: float
    shared: int
    shared_block: int
    cache: float


FACTS: dict[str, GPUFacts] = {
    "a100-40": GPUFacts("NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 1.41, 164, 163, 40),
    "a100-80": GPUFacts("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 164, 163, 40),
    "h100": GPUFacts("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 228, 227, 50),
    "h200": GPUFacts("NVIDIA H200", (9, 0), 132, 128, 1.98, 228, 227, 50),
    "b200": GPUFacts("NVIDIA B200", (10, 0), 148, 128, 1.965, 228, 227, 126.5),
    "rtx4080": GPUFacts("NVIDIA GeForce RTX 4080", (8, 9), 76, 128, 2.505, 100, 99, 64),
    "rtx4090": GPUFacts("NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 2.52, 100, 99, 72),
}


def missing_modules() -> tuple[str, ...]:
    """The modules of the compiler that are not installed; empty where it can compile."""
    return tuple(name for name in _MODULES if not _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that would contain it
        return False


def gpu_devices(topology: Topology) -> list[jax.Device]:
    """The devices of a GPU topology, node by node.

    Raises:
      ValueError: the compiler is not installed, or refuses the topology.
    """
    missing = missing_modules()
    if missing:
        raise ValueError(
            f"compiling for a GPU that is not attached needs {', '.join(missing)}, not installed here: {NEEDED}"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    nodes, per_node = topology.shape
    shape = f"1x{topology.slices * nodes}x{per_node}"
    target = target_config(topology)
    try:
        return list(topologies.get_topology_desc(shape, "cuda", target_config=target, topology=shape).devices)
    # JAX raises NotImplementedError for the plugin's UNIMPLEMENTED, which means an unknown GPU or shape.
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"topology {topology.name} is refused by XLA's compiler for GPUs: {reason}") from error


def gpu_layout(topology: Topology, mesh: MeshConfig) -> Layout:
    """Builds the layout over the devices of a GPU topology.

    Raises:
      ValueError: see `gpu_devices`; or the mesh does not match the device count.
    """
    devices = gpu_devices(topology)
    axes = (jax.sharding.AxisType.Auto,) * len(AXES)
    alone = jax.sharding.Mesh(np.asarray(devices[:1]).reshape((1,) * len(AXES)), AXES, axis_types=axes)
    return make_layout(mesh, devices) or Layout(alone)


def gpu_notes(text: str) -> tuple[str, ...]:
    """What the compiler has not done, for the readers of a plan; `text` is the compiled program."""
    notes = ["compiled by XLA for GPUs without a device: no kernel was timed to choose it, nothing was run"]
    if CUDNN_CALL in text:
        notes.append("attention is cuDNN's: its calls are part of the program, its kernels and workspaces are not")
    if not cuda_libraries().cudnn:
        notes.append("cuDNN is not installed here: XLA computes the attention that a machine with cuDNN leaves to it")
    return tuple(notes)


def target_config(topology: Topology) -> str:
    """XLA's description of the GPU (a `GpuTargetConfigProto` as text). Its memory is what programs may use of it."""
    chip, facts = topology.chip, FACTS[topology.chip.name]
    major, minor = facts.capability
    # From Hopper on, the instructions of exactly this architecture may be used (sm_90a).
    exact = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {exact} }}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {facts.shared_block * 1024}
  shared_memory_per_core: {facts.shared * 1024}
  core_count: {facts.cores}
  fpus_per_core: {facts.lanes}
  clock_rate_ghz: {facts.clock}
  l2_cache_size: {int(facts.cache * 2**20)}
  memory_bandwidth: {int(chip.bandwidth)}
  device_memory_size: {int(chip.usable)}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{facts.name}"
"""
