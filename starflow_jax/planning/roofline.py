"""Estimates of the time of a step, from a compiled program and from the published peaks of the chip.

Three estimates, from the kindest to the harshest; none is a measurement:

- *hidden*: matrix units at `MATRIX_SHARE` of their peak or the memory at its bandwidth, whichever takes longer, in
  every loop body. The collectives along data and fsdp (gathers of kernels, sums of gradients) run beside that, as XLA's
  latency-hiding scheduler has them do, and cost what they take longer. Collectives along tensor and sequence stand
  between two products, and are added.
- *exposed*: the same work with nothing beside anything: matrix units, then memory, then every collective.
- *compiler*: the cycles that the TPU compiler itself expects of every operation that it scheduled, memory traffic
  included, at the chip's clock. Collectives that it scheduled beside other operations cost what they take longer, all
  others are added.

Attention kernels, of which the compiler expects nothing, take in all three the cycles of their own schedules
(`kernels.attention.tiling`): narrow heads leave part of the matrix units idle.

A collective takes the bytes that a device sends by the ring algorithms over the bandwidth of the links that its group
uses (`chips.Topology.group_bandwidth`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from starflow_jax.costs.chips import Topology
from starflow_jax.kernels.attention.tiling import COSTS
from starflow_jax.planning.collectives import Collective, mesh_axes
from starflow_jax.planning.hlo import Instruction, Program

# What products of this size reach of the peak: cuBLAS and XLA:TPU reach 0.7 to 0.95 of it.
MATRIX_SHARE = {"tpu": 0.9, "gpu": 0.75}

_KERNEL = 'custom_call_target="tpu_custom_call"'

# Axes of the mesh whose collectives move kernels and gradients, which wait for no product.
_HIDEABLE = {"data", "fsdp"}
_NOT_MOVED = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "partition-id",
    "after-all", "copy-start", "slice-start", "async-start", "async-done", "iota",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Region:
    """What happens in one computation of a program, times its turns; seconds on one device.

    Attributes:
      name: of the computation.
      cycles: by the compiler's own expectation, as seconds.
      kernels: share of the program's time in attention kernels.
      bytes: to and from the main memory.
      beside, between: of collectives that the compiler scheduled beside other work, and of the others.
      hideable, needed: of collectives along data and fsdp, and of the others.
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
    """An estimate of a step: its seconds, what share of the peak its model FLOPs are, and what it is made of."""

    name: str
    seconds: float
    mfu: float
    products: float
    kernels: float
    memory: float
    collectives: float


def regions(program: Program, found: Iterable[Collective], topology: Topology, mesh: Mapping[str, int]) -> list[Region]:
    """The regions of a program compiled for a TPU, without those in which nothing happens."""
    times = program.times()
    callers = program.callers()
    seconds: dict[str, list[float]] = {}
    for collective in found:
        place = collective.computation
        while place in callers:
            place = callers[place][0]
        taken = collective.times * collective.sent / topology.group_bandwidth(collective.group_size)
        axes = mesh_axes(collective, mesh)
        parts = seconds.setdefault(place, [0.0] * 4)
        parts[0 if collective.overlapped else 1] += taken
        parts[2 if axes is not None and set(axes) <= _HIDEABLE else 3] += taken
    weights = {
        name: times.get(name, 0) * sum(_kernel_weight(lines, instruction) for instruction in lines.values())
        for name, lines in program.computations.items()
    }
    result = []
    for name, lines in program.computations.items():
        if not times.get(name) or name in callers:
            continue
        cycles = sum(_cycles(instruction) for instruction in lines.values())
        moved = sum(_bytes(program, lines, instruction) for instruction in lines.values())
        clock = topology.chip.clock
        region = Region(
            name,
            times[name] * cycles / clock if clock else 0.0,
            weights[name] / (sum(weights.values()) or 1),
            float(times[name] * moved),
            *seconds.get(name, [0.0] * 4),
        )
        if region.cycles or region.bytes or name in seconds:
            result.append(region)
    return result


def estimates(
    parts: list[Region],
    topology: Topology,
    *,
    model_flops: float,
    hardware_flops: float,
    kernel_flops: float = 0.0,
    head_dim: int = 128,
) -> list[Estimate]:
    """The three estimates of a program; the compiler's is left out where it gave no cycles.

    Args:
      parts: of `regions`; FLOPs are shared out among them as the compiler's cycles are.
      model_flops: by `flops.model_flops`; hardware_flops: of all devices, recomputation and masked pairs included.
      kernel_flops: of attention kernels, which are not in hardware_flops; head_dim: channels of their heads.
    """
    reached = topology.devices * topology.peak * MATRIX_SHARE[topology.chip.kind]
    products = hardware_flops / reached
    kernels = kernel_flops / (topology.devices * topology.peak * kernel_share(topology, head_dim))
    cycles = sum(part.cycles for part in parts)
    memory = sum(part.bytes for part in parts) / topology.bandwidth
    moved = sum(part.hideable + part.needed for part in parts)
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
        return Estimate(name, seconds, mfu, products, kernels, memory, moved)

    found = [estimate("hidden", hidden), estimate("exposed", exposed)]
    return [*found, estimate("compiler", scheduled)] if cycles else found


def kernel_share(topology: Topology, head_dim: int) -> float:
    """The share of the peak that attention kernels reach in training, by the cycles of `kernels.attention.tiling`."""
    chip = topology.chip
    if chip.name not in COSTS:
        return MATRIX_SHARE[chip.kind]
    costs = COSTS[chip.name]
    cycles = costs.tile(head_dim, backward=False) + costs.tile(head_dim, backward=True)
    # A core has four matrix units; some chips have two cores.
    cores = round(topology.peak / chip.clock / (8 * chip.unit**2))
    products = 7 * 2 * 128 * 128 * head_dim
    return min(products * cores / (cycles * topology.peak / chip.clock), MATRIX_SHARE[chip.kind])


def _kernel_weight(lines: Mapping[str, Instruction], instruction: Instruction) -> float:
    """What an attention kernel's work grows with, [..., d, n] in and n keys a query; 0 for other operations."""
    if instruction.opcode != "custom-call" or _KERNEL not in instruction.attributes:
        return 0.0
    if instruction.name.startswith("jacobi_update"):
        return 0.0  # a pass over memory: no products
    inputs = [array for name in instruction.operands for array in (lines[name].arrays if name in lines else ())]
    sizes = [math.prod(array.shape) * array.shape[-1] for array in inputs if len(array.shape) >= 3]
    return float(max(sizes, default=0))


def _cycles(instruction: Instruction) -> int:
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(found.group(1)) if found else 0


def _bytes(program: Program, lines: Mapping[str, Instruction], instruction: Instruction) -> int:
    """Bytes that an operation reads from and writes to the main memory; what a fusion slices counts as the slice."""
    opcode = instruction.opcode
    if opcode in _NOT_MOVED or opcode.startswith(("all-", "reduce-scatter", "collective-")):
        return 0
    if opcode == "dynamic-slice":
        return 2 * _own(instruction)
    if opcode == "dynamic-update-slice":
        return 2 * _own(lines.get(instruction.operands[1]))
    reads = [_own(lines.get(name)) for name in instruction.operands]
    writes = _own(instruction)
    if _KERNEL in instruction.attributes:
        # Caches of all layers, [layers, B, k, d, S], of which a kernel reads one.
        reads = [_of_one_layer(lines.get(name)) for name in instruction.operands]
    inner = _fused(program, instruction)
    for place, size in _slices(program, inner).items():
        reads[place] = min(reads[place], size)
    for line in inner.values():
        whole = _parameter(inner, line.operands[0]) if line.opcode == "dynamic-update-slice" else None
        if whole is not None and reads[whole]:
            # In place: the rest of the array is not touched.
            update = inner.get(line.operands[1])
            size = update.arrays[0].bytes if update is not None and update.arrays else 0
            writes -= min(writes, reads[whole]) - size
            reads[whole] = 0
    return sum(reads) + max(writes, 0)


def _fused(program: Program, instruction: Instruction) -> Mapping[str, Instruction]:
    """The operations of a fusion; none for others."""
    callee = instruction.callee if instruction.opcode == "fusion" else None
    return program.computations.get(callee or "", {})


def _parameter(lines: Mapping[str, Instruction], name: str) -> int | None:
    """Which parameter of a computation a name stands for, if any."""
    found = lines.get(name)
    return int(found.literal) if found is not None and found.opcode == "parameter" else None


def _slices(program: Program, lines: Mapping[str, Instruction]) -> dict[int, int]:
    """Bytes of those parameters of a fusion of which it, or a fusion inside it, reads a slice."""
    found: dict[int, int] = {}
    for line in lines.values():
        sliced = line.opcode == "dynamic-slice"
        sizes = {0: line.arrays[0].bytes} if sliced else _slices(program, _fused(program, line))
        for operand, size in sizes.items():
            place = _parameter(lines, line.operands[operand])
            if place is not None:
                found[place] = min(size, found.get(place, size))
    return found


def _of_one_layer(instruction: Instruction | None) -> int:
    found = _own(instruction)
    stacked = instruction is not None and instruction.arrays and len(instruction.arrays[0].shape) == 5
    return found // instruction.arrays[0].shape[0] if instruction is not None and stacked else found


def _own(instruction: Instruction | None) -> int:
    """Bytes of a value that lie in the main memory."""
    return 0 if instruction is None else sum(array.bytes for array in instruction.arrays if array.space == 0)
