"""Estimates of the step time from a compiled program and the published peaks of the chip.

There are three estimates, from the most to the least optimistic. None is a measurement.

- *hidden*: in every loop body, the longer of matrix units at `Chip.share` of their peak and memory at its bandwidth.
  Collectives along data and fsdp (gathers of kernels, sums of gradients) overlap with both, as XLA's latency-hiding
  scheduler arranges, and cost only the time by which they exceed them. Collectives along tensor and sequence lie
  between dependent products, and their time is added.
- *exposed*: the same work without any overlap: the sum of matrix units, memory and every collective.
- *compiler*: the TPU compiler's own estimate of cycles for every scheduled operation, memory traffic included, at the
  chip's clock. Collectives that it overlaps with other operations cost only their excess; all others are added.

The compiler has no cycle estimate for attention kernels, so all three use the cycles of the kernels' own schedules
(`kernels.attention.block_sizes`), in which narrow heads leave part of the matrix units idle.

The time of a collective is the bytes that a device sends with ring algorithms, divided by the bandwidth of the links
that its group uses (`chips.Topology.group_bandwidth`). What crosses slices takes the network between them
(`Topology.between_slices`); a sum over several slices is first made inside each, so that this network carries a part.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from starflow_jax.costs.chips import Topology
from starflow_jax.kernels.attention.block_sizes import COSTS
from starflow_jax.planning.collectives import Collective, mesh_axes
from starflow_jax.planning.hlo import Instruction, Program

_KERNEL = 'custom_call_target="tpu_custom_call"'

# Mesh axes whose collectives move kernels and gradients, which do not depend on the current product.
_HIDEABLE = {"slices", "data", "fsdp"}
_NOT_MOVED = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "partition-id",
    "after-all", "copy-start", "slice-start", "async-start", "async-done", "iota", "send", "send-done", "recv",
    "recv-done",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Region:
    """Cost of one computation of a program over all its runs; times are in seconds on one device.

    Attributes:
      name: name of the computation.
      cycles: the compiler's cycle estimate, converted to seconds.
      kernels: this computation's share of the program's time in attention kernels.
      bytes: traffic to and from main memory.
      beside, between: time of collectives that the compiler overlaps with other work, and of the others.
      hideable, needed: time of collectives along data and fsdp, and of the others.
    """

    name: str
    cycles: float
    kernels: float
    bytes: float
    beside: float
    between: float
    hideable: float
    needed: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate of the step time in seconds, its model FLOPs utilization, and the time of each component."""

    name: str
    seconds: float
    mfu: float
    products: float
    kernels: float
    memory: float
    collectives: float


def regions(
    program: Program, collectives: Iterable[Collective], topology: Topology, mesh: Mapping[str, int]
) -> list[Region]:
    """Splits a program compiled for a TPU into regions, leaving out those without any cost."""
    times = program.times()
    callers = program.callers()
    seconds: dict[str, list[float]] = {}
    for collective in collectives:
        computation = collective.computation
        while computation in callers:
            computation = callers[computation][0]
        seconds_taken = collective.times * transfer_seconds(collective, topology)
        axes = mesh_axes(collective, mesh)
        parts = seconds.setdefault(computation, [0.0] * 4)
        parts[0 if collective.overlapped else 1] += seconds_taken
        parts[2 if axes is not None and set(axes) <= _HIDEABLE else 3] += seconds_taken
    weights = {
        name: times.get(name, 0) * sum(_kernel_weight(lines, instruction) for instruction in lines.values())
        for name, lines in program.computations.items()
    }
    result = []
    for name, lines in program.computations.items():
        if not times.get(name) or name in callers:
            continue
        cycles = sum(_cycles(instruction) for instruction in lines.values())
        num_bytes = sum(_bytes(program, lines, instruction) for instruction in lines.values())
        clock = topology.chip.clock
        region = Region(
            name,
            times[name] * cycles / clock if clock else 0.0,
            weights[name] / (sum(weights.values()) or 1),
            float(times[name] * num_bytes),
            *seconds.get(name, [0.0] * 4),
        )
        if region.cycles or region.bytes or name in seconds:
            result.append(region)
    return result


def transfer_seconds(collective: Collective, topology: Topology) -> float:
    """Time of one run of a collective, by the links that it uses."""
    inside = topology.devices // topology.slices
    groups = collective.groups or (range(collective.group_size),)
    crossed = max(len({device // inside for device in group}) for group in groups)
    if crossed == 1:
        return collective.sent / topology.group_bandwidth(collective.group_size)
    if collective.kind != "all-reduce":
        return collective.sent / topology.between_slices
    members = collective.group_size // crossed  # of a slice, between which it is scattered, and gathered again
    seconds = 2 * collective.bytes / members * (crossed - 1) / crossed / topology.between_slices
    if members > 1:
        seconds += 2 * collective.bytes * (members - 1) / members / topology.group_bandwidth(members)
    return seconds


def whole(parts: list[Region]) -> Region:
    """All regions as one, in which everything may overlap."""
    figures = [field.name for field in dataclasses.fields(Region) if field.name != "name"]
    return Region("program", *(sum(getattr(part, figure) for part in parts) for figure in figures))


def estimates(
    parts: list[Region],
    topology: Topology,
    *,
    model_flops: float,
    hardware_flops: float,
    kernel_flops: float = 0.0,
    head_dim: int = 128,
    kernel_cycles: float | None = None,
) -> list[Estimate]:
    """Computes the estimates of a program; "compiler" is left out if the compiler gave no cycles.

    Args:
      parts: result of `regions`; FLOPs are distributed over them in proportion to the compiler's cycles.
      model_flops: from `flops.model_flops`.
      hardware_flops: FLOPs of all devices, recomputation and masked pairs included.
      kernel_flops: FLOPs of attention kernels, which hardware_flops exclude; head_dim: channels of their heads.
      kernel_cycles: of one core in these kernels, for all devices (`flops.kernel_cycles`); None: from kernel_flops.
    """
    reached = topology.devices * topology.peak * topology.chip.share
    products = hardware_flops / reached
    if kernel_cycles is None:
        kernels = kernel_flops / (topology.devices * topology.peak * kernel_share(topology, head_dim))
    else:
        kernels = kernel_cycles / (topology.devices * cores(topology) * topology.chip.clock)
    cycles = sum(part.cycles for part in parts)
    memory = sum(part.bytes for part in parts) / topology.bandwidth
    collectives = sum(part.hideable + part.needed for part in parts)
    hidden = exposed = scheduled = 0.0
    for part in parts:
        kernel = kernels * part.kernels
        share = products * (part.cycles / cycles if cycles else 1 / len(parts)) + kernel
        traffic = part.bytes / topology.bandwidth
        hidden += max(share, traffic, part.hideable) + part.needed
        exposed += share + traffic + part.hideable + part.needed
        scheduled += max(part.cycles + kernel, part.beside) + part.between

    def estimate(name: str, seconds: float) -> Estimate:
        mfu = model_flops / (seconds * topology.peak * topology.devices) if seconds else 0.0
        return Estimate(name, seconds, mfu, products, kernels, memory, collectives)

    result = [estimate("hidden", hidden), estimate("exposed", exposed)]
    return [*result, estimate("compiler", scheduled)] if cycles else result


def cores(topology: Topology) -> int:
    """Number of cores of a TPU device; each has four matrix units."""
    return round(topology.peak / topology.chip.clock / (8 * topology.chip.unit**2))


def kernel_share(topology: Topology, head_dim: int) -> float:
    """Share of the peak that attention kernels reach in training, from the cycles of `attention.block_sizes`."""
    chip = topology.chip
    if chip.name not in COSTS:
        return chip.share
    costs = COSTS[chip.name]
    cycles = costs.tile(head_dim, backward=False) + costs.tile(head_dim, backward=True)
    products = 7 * 2 * 128 * 128 * head_dim
    return min(products * cores(topology) / (cycles * topology.peak / chip.clock), chip.share)


def _kernel_weight(lines: Mapping[str, Instruction], instruction: Instruction) -> float:
    """Relative work of an attention kernel with inputs [..., d, n] and n keys per query; 0 for other operations."""
    if instruction.opcode != "custom-call" or _KERNEL not in instruction.attributes:
        return 0.0
    if instruction.name.startswith("jacobi_update"):
        return 0.0  # this kernel only moves memory and computes no products
    inputs = [array for name in instruction.operands for array in (lines[name].arrays if name in lines else ())]
    sizes = [math.prod(array.shape) * array.shape[-1] for array in inputs if len(array.shape) >= 3]
    return float(max(sizes, default=0))


def _cycles(instruction: Instruction) -> int:
    match = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(match.group(1)) if match else 0


def _bytes(program: Program, lines: Mapping[str, Instruction], instruction: Instruction) -> int:
    """Bytes that an operation reads from and writes to main memory; a sliced input of a fusion counts as its slice."""
    opcode = instruction.opcode
    if opcode in _NOT_MOVED or opcode.startswith(("all-", "reduce-scatter", "collective-")):
        return 0
    if opcode == "dynamic-slice":
        return 2 * _num_bytes(instruction)
    if opcode == "dynamic-update-slice":
        return 2 * _num_bytes(lines.get(instruction.operands[1]))
    reads = [_num_bytes(lines.get(name)) for name in instruction.operands]
    writes = _num_bytes(instruction)
    if _KERNEL in instruction.attributes:
        # The operand may be the cache of all layers, [layers, B, k, d, S]; the kernel reads one layer.
        reads = [_layer_bytes(lines.get(name)) for name in instruction.operands]
    inner = _fused(program, instruction)
    for index, size in _slices(program, inner).items():
        reads[index] = min(reads[index], size)
    for line in inner.values():
        operand = _parameter(inner, line.operands[0]) if line.opcode == "dynamic-update-slice" else None
        if operand is not None and reads[operand]:
            # The update is in place: the rest of the array is not touched.
            update = inner.get(line.operands[1])
            size = update.arrays[0].bytes if update is not None and update.arrays else 0
            writes -= min(writes, reads[operand]) - size
            reads[operand] = 0
    return sum(reads) + max(writes, 0)


def _fused(program: Program, instruction: Instruction) -> Mapping[str, Instruction]:
    """The operations inside a fusion; empty for other operations."""
    callee = instruction.callee if instruction.opcode == "fusion" else None
    return program.computations.get(callee or "", {})


def _parameter(lines: Mapping[str, Instruction], name: str) -> int | None:
    """Index of the parameter that a name refers to, or None if it is not a parameter."""
    instruction = lines.get(name)
    return int(instruction.literal) if instruction is not None and instruction.opcode == "parameter" else None


def _slices(program: Program, lines: Mapping[str, Instruction]) -> dict[int, int]:
    """Maps each parameter of which a fusion, or a fusion inside it, reads a slice to the bytes of that slice."""
    slices: dict[int, int] = {}
    for line in lines.values():
        sliced = line.opcode == "dynamic-slice"
        sizes = {0: line.arrays[0].bytes} if sliced else _slices(program, _fused(program, line))
        for operand, size in sizes.items():
            index = _parameter(lines, line.operands[operand])
            if index is not None:
                slices[index] = min(size, slices.get(index, size))
    return slices


def _layer_bytes(instruction: Instruction | None) -> int:
    num_bytes = _num_bytes(instruction)
    stacked = instruction is not None and instruction.arrays and len(instruction.arrays[0].shape) == 5
    return num_bytes // instruction.arrays[0].shape[0] if instruction is not None and stacked else num_bytes


def _num_bytes(instruction: Instruction | None) -> int:
    """Bytes of a value in main memory."""
    return 0 if instruction is None else sum(array.bytes for array in instruction.arrays if array.space == 0)
