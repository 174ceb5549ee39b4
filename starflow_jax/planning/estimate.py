"""Predicts memory and step time of an experiment on accelerators that are not attached.

The real program is compiled and analysed: for TPUs by libtpu (`ahead_of_time`), for GPUs by XLA in JAX's CUDA
plugin (`gpu_compiler`). Where that is not installed, the figures of GPUs are computed from the configuration alone
(`budget`), without a compilation.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from typing import Any, Literal

from starflow_jax.core.choices import ProgramName, Quantisation
from starflow_jax.core.config.checks import check
from starflow_jax.core.config.experiment_config import ExperimentConfig
from starflow_jax.core.config.flow_checks import check_trainable
from starflow_jax.core.config.mesh_config import AXES
from starflow_jax.costs.chips import Topology
from starflow_jax.costs.flops import (
    Work,
    causal_flops,
    forward_parts,
    kernel_cycles,
    kernel_flops,
    model_flops,
    traced,
)
from starflow_jax.flows.parameters import abstract, count, unquantised
from starflow_jax.planning import budget
from starflow_jax.planning.ahead_of_time import Memory, argument_bytes, compile_ahead, tpu_layout
from starflow_jax.planning.collectives import collectives
from starflow_jax.planning.gpu_compiler import CUDNN_CALL, NEEDED, gpu_layout, gpu_notes, missing_modules
from starflow_jax.planning.hlo import parse
from starflow_jax.planning.programs import inverse_program, training_program
from starflow_jax.planning.roofline import Estimate, Region, estimates, regions, whole
from starflow_jax.planning.transfers import Transfer, transfers
from starflow_jax.sharding.layout import BATCH, Layout
from starflow_jax.sharding.mesh import batch_axes, check_fit


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes, FLOPs and seconds of one step (or one Jacobi iteration) of an experiment on a topology.

    Attributes:
      program: "train" or "inverse"; source: "compiler" (of the TPU or the GPU) or "arithmetic".
      mesh: devices along each axis; batch, accumulate: as in the configuration (for "inverse": number of samples, 1).
      work: sizes of the data; parameters: number of parameters of the flow.
      memory: memory on one device.
      model_flops, hardware_flops, kernel_flops: totals over all devices (see `costs.flops`); hardware_flops exclude
        the attention kernels.
      transfers, estimates: empty if the program does not fit.
      compile_seconds: None without a compiler; flags: compiler flags from LIBTPU_INIT_ARGS, of GPUs from XLA_FLAGS.
      chunks: number of chunks in which the deep block solves a sample, of which "inverse" is one iteration of the last.
      notes: what was not compiled, or not done by the compiler, a sentence each.
      quantise: how the kernels are stored, `FlowConfig.quantise`; parts: what an inverse keeps on a device, in bytes.
    """

    program: ProgramName
    source: Literal["compiler", "arithmetic"]
    experiment: str
    topology: str
    devices: int
    mesh: dict[str, int]
    batch: int
    accumulate: int
    remat: str
    work: Work
    parameters: int
    memory: Memory
    model_flops: float
    hardware_flops: float
    kernel_flops: float
    transfers: tuple[Transfer, ...]
    estimates: tuple[Estimate, ...]
    compile_seconds: float | None
    chunks: int = 0
    flags: str = ""
    notes: tuple[str, ...] = ()
    quantise: Quantisation | None = None
    parts: tuple[tuple[str, float], ...] = ()

    def estimate(self, name: str) -> Estimate | None:
        """Returns the estimate of that name, or None."""
        return next((entry for entry in self.estimates if entry.name == name), None)


def make_plan(config: ExperimentConfig, topology: Topology, work: Work, program: ProgramName = "train") -> Plan:
    """Plans a program.

    Args:
      config: the experiment; its mesh, batch size and accumulation count are used.
      topology: the accelerators, of as many slices as the mesh has.
      work: sizes of the data; its batch is the configuration's batch size, or the number of samples per batch.

    Raises:
      ValueError: the compiler is not installed, or the mesh or batch does not fit the devices.
    """
    check(
        config.mesh.slices == topology.slices,
        f"mesh.slices must be the number of slices of the topology, {topology.slices}, got {config.mesh.slices}",
    )
    sizes = dict(zip(AXES, config.mesh.sizes(topology.devices), strict=True))
    tpu = topology.chip.kind == "tpu"
    if tpu:
        layout: Layout | None = tpu_layout(topology, config.mesh)
    else:
        layout = None if missing_modules() else gpu_layout(topology, config.mesh)
    accumulate = config.train.accumulate if program == "train" else 1
    if program == "train":
        check_trainable(config.flow.quantise, "the flow")
        check_sizes(config, sizes, work, layout)
    useful = model_flops(config.flow, work) if program == "train" else inverse_flops(config, work)
    shared = {
        "program": program,
        "experiment": config.name,
        "topology": topology.name,
        "devices": topology.devices,
        "mesh": sizes,
        "batch": work.batch,
        "accumulate": accumulate,
        "remat": config.flow.remat if program == "train" else "none",
        "work": work,
        "parameters": count(abstract(unquantised(config.flow))[1]),
        "quantise": config.flow.quantise,
        "parts": () if program == "train" else budget.inverse_parts(config, sizes, work),
        "model_flops": useful,
        "chunks": 0 if program == "train" else len(budget.chunks(work)),
    }
    if layout is None:
        estimated = budget.budget(config, topology, sizes, work, program, useful)
        notes = (f"formulas, not compiled: XLA's compiler for GPUs is not installed ({NEEDED})",)
        return Plan(source="arithmetic", compile_seconds=None, notes=notes, **estimated, **shared)  # type: ignore[arg-type]
    traced_program = (
        training_program(config, work, layout) if program == "train" else inverse_program(config, work, layout)
    )
    trace = traced_program.function.trace(*traced_program.arguments)
    compiled = compile_ahead(trace.lower(), topology, argument_bytes(traced_program.arrays))
    hardware = traced(trace.jaxpr)
    kernels, inside = 0, None
    if re.search("attention_(forward|decode)", compiled.text):  # otherwise XLA computes attention as ordinary products
        inverse = program == "inverse"
        kernels = cached_flops(config, work) if inverse else kernel_flops(config.flow, work, topology.chip.name)
        inside = kernel_cycles(config.flow, work, topology.chip.name) if tpu and not inverse else None
    elif CUDNN_CALL in compiled.text:
        kernels = causal_flops(config.flow, work)
    moved: tuple[Transfer, ...] = ()
    times: tuple[Estimate, ...] = ()
    if compiled.text:
        moves = collectives(compiled.text)
        moved = tuple(transfers(moves, sizes))
        parts = regions(parse(compiled.text), moves, topology, sizes)
        if not tpu:  # whose compiler gives no cycles, by which products would be distributed
            parts = [whole(parts)]
        times = tuple(_estimates(config, topology, parts, useful, hardware, kernels, inside))
    return Plan(
        source="compiler",
        memory=compiled.memory,
        hardware_flops=hardware,
        kernel_flops=kernels,
        transfers=moved,
        estimates=times,
        compile_seconds=compiled.seconds,
        flags=os.environ.get("LIBTPU_INIT_ARGS" if tpu else "XLA_FLAGS", ""),
        notes=() if tpu else gpu_notes(compiled.text),
        **shared,  # type: ignore[arg-type]
    )


def _estimates(
    config: ExperimentConfig,
    topology: Topology,
    parts: list[Region],
    useful: float,
    hardware: float,
    kernels: float,
    inside: float | None,
) -> list[Estimate]:
    return estimates(
        parts,
        topology,
        model_flops=useful,
        hardware_flops=hardware,
        kernel_flops=kernels,
        head_dim=config.flow.blocks[-1].head_dim,
        kernel_cycles=inside,
    )


def check_sizes(config: ExperimentConfig, sizes: dict[str, int], work: Work, layout: Layout | None) -> None:
    """Raises ValueError where a batch or a flow does not divide over a mesh."""
    check_fit(layout, config.flow, work.batch, config.train.accumulate)
    rows, part = batch_parts(sizes), work.batch // config.train.accumulate
    check(
        work.batch % config.train.accumulate == 0 and part % rows == 0,
        f"the batch must be a multiple of train.accumulate x {batch_axes(sizes)} = "
        f"{config.train.accumulate * rows}, got {work.batch}",
    )


def batch_parts(sizes: dict[str, int]) -> int:
    """The number of parts that a mesh divides a batch into."""
    return math.prod(sizes[name] for name in BATCH)


def inverse_flops(config: ExperimentConfig, work: Work) -> int:
    """FLOPs of one guided Jacobi iteration of the deep block's last chunk, counted as in `costs.flops`."""
    flow = config.flow
    _, _, kind = budget.chunks(work)[-1]
    chunk = dataclasses.replace(work, frames=None, rows=1, columns=kind.size, text=0, batch=2 * work.batch)
    dense = forward_parts(flow, chunk)[-1 if flow.denoiser is None else -2].dense
    return dense + cached_flops(config, work)


def cached_flops(config: ExperimentConfig, work: Work) -> int:
    """FLOPs of that iteration's attention to the cache."""
    flow = config.flow
    transformer = flow.blocks[-1]
    _, length, kind = budget.chunks(work)[-1]
    slots = work.tokens + (work.text if flow.is_conditioned(flow.num_blocks - 1) else 0)
    pairs = kind.size * (slots - length) + kind.size * (kind.size + 1) // 2
    return 2 * work.batch * 4 * pairs * transformer.heads * transformer.head_dim * transformer.layers


def largest_batch(
    plan_of: Callable[[int], Plan], step: int, start: int, limit: int = 2**16
) -> tuple[Plan | None, list[tuple[int, bool]]]:
    """Finds the largest batch that fits, by doubling and bisection to within 3 %; None if not even `step` fits.

    Args:
      plan_of: returns the plan of a batch size.
      step: batches are multiples of it (the divisor that the layout requires).
      start: an initial guess from `budget`; a good guess saves compilations.
      limit: the largest batch to try.

    Returns:
      The plan, and every batch size that was tried with whether it fits.
    """
    plans: dict[int, Plan] = {}

    def fits(multiple: int) -> bool:
        if multiple not in plans:
            plans[multiple] = plan_of(multiple * step)
        return plans[multiple].memory.fits

    low, high = 0, limit // step + 1
    guess = min(max(start // step, 1), high - 1)
    while high - low > max(1, low // 32):
        if fits(guess):
            low = guess
            guess = min(2 * guess, high - 1) if high > limit // step else (low + high) // 2
        else:
            high = guess
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
    return plans.get(low), [(multiple * step, plan.memory.fits) for multiple, plan in sorted(plans.items())]


def as_values(plan: Plan) -> dict[str, Any]:
    """Converts a plan, with its verdict, to plain values for JSON."""
    values = dataclasses.asdict(plan)
    values["memory"] |= {"peak": plan.memory.peak, "fits": plan.memory.fits, "short": plan.memory.short}
    return values
