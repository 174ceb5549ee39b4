"""NVIDIA's compiler takes every GPU kernel without spilling registers; what it prints is read."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

import jax
import pytest

from starflow_jax.costs.chips import CHIPS, topology
from starflow_jax.costs.flops import Work
from starflow_jax.experiments.benchmarks import gpu_compiled
from starflow_jax.kernels.kernel_choice import Target
from starflow_jax.planning import gpu_compiler
from starflow_jax.planning.estimate import make_plan
from starflow_jax.planning.plan_report import report

HOPPER = Target("gpu", "NVIDIA H100", "9.0")
SHARED_OF_A_BLOCK = 227 * 1024
REGISTERS = 65536
PRINTED = """ptxas warning : Registers are spilled to local memory in function 'second_mosaic_gpu_kernel'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for first_mosaic_gpu_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers, 1 bytes smem
ptxas info    : Compiling entry function 'second_mosaic_gpu_kernel' for 'sm_90a'
    216 bytes stack frame, 340 bytes spill stores, 372 bytes spill loads
ptxas info    : Used 64 registers, used 16 barriers, 216 bytes cumulative stack size, 1 bytes smem
ptxas info    : Compiling entry function 'loop_fusion' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers
"""


def needs_compiler():
    missing = gpu_compiler.missing_modules()
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: {gpu_compiler.NEEDED}")


def test_the_report_of_ptxas_is_read():
    used = gpu_compiled.read_ptxas(PRINTED)
    assert used == {"first": gpu_compiled.Used(168, 0, 0), "second": gpu_compiled.Used(64, 712, 216)}


def test_the_launch_of_a_kernel_is_read_from_its_program():
    case = gpu_compiled.QUICK[-1]
    function, shapes = case.program(HOPPER)
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",))
    (launch,) = gpu_compiled.launches(lowered)
    assert (launch.blocks, launch.threads) == (2, 128)
    assert 0 <= launch.shared <= SHARED_OF_A_BLOCK


def test_every_gpu_of_a_topology_is_described():
    gpus = [name for name, chip in CHIPS.items() if chip.kind == "gpu"]
    assert set(gpus) == set(gpu_compiler.FACTS)
    for name in gpus:
        text = gpu_compiler.target_config(topology(f"{name}:8"))
        assert text.count("{") == text.count("}") and f"core_count: {gpu_compiler.FACTS[name].cores}\n" in text


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs jax_cuda12_plugin, .* pip install 'starflow-jax\[gpu-compiler\]'"):
        gpu_compiler.gpu_devices(topology("h100:8"))


@functools.cache
def rows():
    needs_compiler()
    return gpu_compiled.measure(quick=False)


@pytest.mark.gpu_compiler
def test_no_kernel_spills_and_every_block_fits():
    compiled = {row["kernel"] for row in rows() if row["registers"]}
    assert compiled == {"attention_forward", "attention_backward_queries", "attention_backward_keys", "jacobi_update"}
    assert {row["case"] for row in rows()} == {case.name for case in gpu_compiled.CASES}
    # ptxas reports each program once, with the first case that needs it: every attention kernel for both head sizes.
    reported = [row for row in rows() if row["registers"]]
    sizes = {(row["kernel"], "of 128" in row["case"]) for row in reported}
    assert sizes >= {(kernel, large) for kernel in compiled - {"jacobi_update"} for large in (False, True)}
    assert all(row["spilled"] is not None and row["stack"] is not None for row in reported)
    for row in rows():
        assert not row["spilled"] and not row["stack"], row
        assert row["shared"] <= SHARED_OF_A_BLOCK and (row["registers"] or 0) * row["threads"] <= REGISTERS, row


@pytest.mark.gpu_compiler
@pytest.mark.parametrize("program", ["train", "inverse"])
def test_a_tiny_flow_is_compiled_for_gpus(program):
    needs_compiler()
    from test_plan import SMALL, STILL

    config = dataclasses.replace(SMALL, flow=dataclasses.replace(SMALL.flow, text_length=4))
    work = Work(8, None, 2, 2, 4) if program == "train" else dataclasses.replace(STILL, batch=1)
    plan = make_plan(config, topology("h100:4"), work, program)
    assert plan.source == "compiler" and plan.memory.fits and plan.notes
    if program == "train":
        assert 1.0 < plan.memory.arguments / (12 * plan.parameters / 2) < 1.3
        assert ("all-gather", ("fsdp",)) in {(move.kind, move.axes) for move in plan.transfers}
    assert [found.name for found in plan.estimates] == ["hidden", "exposed"]
    assert "without a device" in report(plan)
