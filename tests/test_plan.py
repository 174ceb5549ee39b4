"""Plans: what does not fit is reported with the missing memory, estimates keep their order, refusals are sentences."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from types import SimpleNamespace

import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import (
    DataConfig,
    ExperimentConfig,
    FlowConfig,
    MeshConfig,
    SampleConfig,
    TrainConfig,
    load_config,
)
from starflow_jax.costs.chips import topology
from starflow_jax.costs.flops import Work, kernel_cycles, kernel_flops, model_flops
from starflow_jax.planning import ahead_of_time as ahead
from starflow_jax.planning import budget
from starflow_jax.planning.ahead_of_time import Memory, exceeded
from starflow_jax.planning.collectives import Collective, collectives
from starflow_jax.planning.estimate import largest_batch, make_plan
from starflow_jax.planning.hlo import parse
from starflow_jax.planning.plan_report import report
from starflow_jax.planning.programs import inverse_program
from starflow_jax.planning.roofline import Region, estimates, kernel_share, regions, transfer_seconds

V5E = topology("v5e:2x2")
STILL = Work(8, None, 2, 2, 3)
SMALL = ExperimentConfig(
    name="small",
    flow=FlowConfig(
        channels=2, image_size=2, width=128, num_blocks=2, layers_per_block=1, head_dim=64, rope=True, sos=True,
        text_dim=8, text_length=3, cond_top_only=True, dtype="bfloat16", remat="block",
    ),
    data=DataConfig(source="npz", path="none", noise="gaussian", noise_std=0.3),
    train=TrainConfig(steps=4, batch_size=8, lr=1e-4),
    mesh=MeshConfig(data=2, fsdp=2),
)  # fmt: skip
RELEASED = "experiments/starflow_3b_t2i.py"
IMAGES = Work(1024, None, 32, 32, 128)


# Memory


def test_refusals_of_the_compiler_are_read():
    first = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.91G) exceeds "
        "available HBM (15.75G)."
    )
    other = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 1.0G hbm. Exceeded"
    assert exceeded(first) == pytest.approx((17.91 * 2**30, 15.75 * 2**30))
    assert exceeded(other) == pytest.approx((512.5 * 2**20, 2**30))
    assert exceeded("INTERNAL: something else") is None
    assert exceeded("RESOURCE_EXHAUSTED: out of vmem") is None


def test_what_is_missing_is_what_the_peak_exceeds():
    memory = Memory(10.0, 8.0, 15.0)
    assert (memory.peak, memory.fits, memory.short) == (18.0, False, 3.0)
    assert Memory(10.0, 5.0, 15.0).fits and Memory(10.0, 5.0, 15.0).short == 0


def memory_of(batch=1024, accumulate=1, remat="block", **mesh):
    options = {"train.batch_size": batch, "train.accumulate": accumulate, "flow.remat": remat}
    config = load_config(RELEASED, [f"{name}={value}" for name, value in options.items()])
    sizes = {"slices": 1, "data": 1, "fsdp": 64, "tensor": 1, "sequence": 1} | mesh
    return budget.train_memory(config, topology("v5e:8x8"), sizes, dataclasses.replace(IMAGES, batch=batch))


def test_the_memory_model_follows_what_causes_it():
    base = memory_of()
    assert memory_of(data=8, fsdp=8).arguments == pytest.approx(8 * base.arguments)
    assert memory_of(batch=512).temporaries < base.temporaries
    assert memory_of(accumulate=4).temporaries < base.temporaries
    less = [memory_of(remat=remat).temporaries for remat in ("none", "pointwise", "dense", "block")]
    assert less == sorted(less, reverse=True) and less[-1] == base.temporaries
    assert less[0] > memory_of(remat="mlp").temporaries > base.temporaries
    assert memory_of(fsdp=16, sequence=4).temporaries < memory_of(fsdp=16).temporaries


@pytest.mark.parametrize(("limit", "start"), [(52, 4), (52, 512), (4, 4), (3, 64), (10**6, 8)])
def test_a_search_ends_at_the_largest_batch_that_fits(limit, start):
    asked = []

    def plan_of(batch):
        asked.append(batch)
        return SimpleNamespace(batch=batch, memory=Memory(0.0, float(batch), float(limit)))

    found, tried = largest_batch(plan_of, 4, start, limit=1024)
    expected = min(limit // 4 * 4, 1024)
    assert (found.batch if found else 0) == expected
    assert len(asked) == len(set(asked)) <= 2 * 8 + 2
    assert all(fitted == (batch <= limit) for batch, fitted in tried)


# Estimates


def region(**seconds):
    base = {"cycles": 2.0, "kernels": 0.0, "bytes": 0.0, "beside": 0.0, "between": 0.0, "hideable": 0.0, "needed": 0.0}
    return Region("body", **(base | seconds))


def times(*parts, flops=V5E.devices * V5E.peak, **more):
    return {e.name: e for e in estimates(list(parts), V5E, model_flops=flops, hardware_flops=flops, **more)}


def test_a_product_at_the_stated_share_of_the_peak():
    found = times(region())
    assert found["hidden"].seconds == pytest.approx(1 / 0.92) and found["hidden"].mfu == pytest.approx(0.92)


def test_what_overlaps_costs_what_it_takes_longer():
    short, long = times(region(hideable=0.5)), times(region(hideable=3.0))
    assert short["hidden"].seconds == times(region())["hidden"].seconds
    assert long["hidden"].seconds == 3.0
    assert short["exposed"].seconds == short["hidden"].seconds + 0.5
    assert times(region(needed=0.5))["hidden"].seconds == short["hidden"].seconds + 0.5
    assert times(region(beside=1.0))["compiler"].seconds == 2.0
    assert times(region(between=1.0))["compiler"].seconds == 3.0


def test_traffic_bounds_a_region():
    seconds = 5.0
    found = times(region(bytes=seconds * V5E.bandwidth))
    assert found["hidden"].seconds == seconds


def test_cycles_of_kernels_include_what_lies_between_grid_steps():
    flow, one = load_config(RELEASED).flow, dataclasses.replace(IMAGES, batch=1)
    cycles, flops = kernel_cycles(flow, one, "v6e"), kernel_flops(flow, one, "v6e")
    by_cycles = times(region(kernels=1.0), kernel_cycles=cycles, kernel_flops=flops)["hidden"].kernels
    assert by_cycles == pytest.approx(cycles / (V5E.devices * V5E.chip.clock))
    v6e = topology("v6e:2x2")
    without = flops / (v6e.peak * kernel_share(v6e, 64))
    assert 1.2 < cycles / v6e.chip.clock / without < 2


def test_kernels_of_narrow_heads_leave_units_idle():
    one = times(region(kernels=1.0), kernel_flops=V5E.devices * V5E.peak, head_dim=128)
    half = times(region(kernels=1.0), kernel_flops=V5E.devices * V5E.peak, head_dim=64)
    assert 1.1 < half["hidden"].kernels / one["hidden"].kernels < 2
    assert half["compiler"].seconds == pytest.approx(2.0 + half["hidden"].kernels)


PROGRAM = """HloModule m, num_partitions=4

%slices (w: f32[6,256,128], i: s32[]) -> f32[1,256,128] {
  %w = f32[6,256,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,256,128]{2,1,0} dynamic-slice(%w, %i), dynamic_slice_sizes={1,256,128}
}

%sliced_inside (w: f32[6,256,128], i: s32[]) -> f32[1,256,128] {
  %w = f32[6,256,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %s = f32[1,256,128]{2,1,0} fusion(%w, %i), calls=%slices
  ROOT %n = f32[1,256,128]{2,1,0} negate(%s)
}

ENTRY %main (w: f32[6,256,128], i: s32[]) -> f32[1,256,128] {
  %w = f32[6,256,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %one = f32[1,256,128]{2,1,0} fusion(%w, %i), calls=%sliced_inside, backend_config={"estimated_cycles":"1500000"}
  %near = f32[1,256,128]{2,1,0:T(8,128)S(1)} negate(%one), backend_config={"estimated_cycles":"1500000"}
  ROOT %r = f32[1,256,128]{2,1,0} all-reduce(%near), replica_groups=[2,2]<=[4], to_apply=%add
}
"""


def test_a_program_is_read_by_region():
    (found,) = regions(parse(PROGRAM), collectives(PROGRAM), V5E, {"data": 2, "fsdp": 1, "tensor": 2, "sequence": 1})
    slice_bytes = 256 * 128 * 4
    assert found.cycles == pytest.approx(3e6 / 1.5e9)
    # The slice is read and written, then read; what is kept on the chip is no traffic.
    assert found.bytes == pytest.approx(3 * slice_bytes, rel=1e-4)
    assert found.between == found.needed == pytest.approx(slice_bytes / V5E.chip.link)
    assert found.hideable == found.beside == 0.0


def test_sums_between_slices_take_their_network():
    two = dataclasses.replace(topology("v5e:8x8"), slices=2)
    across = (tuple(range(128)),)
    whole = Collective("all-reduce", 10**9, (10**9,), "s8", across, 128, 1, "main", "r")
    part = dataclasses.replace(whole, bytes=10**9 // 64, groups=tuple((i, i + 64) for i in range(64)), group_size=2)
    inside = dataclasses.replace(whole, groups=(across[0][:64], across[0][64:]), group_size=64)
    between, within = transfer_seconds(part, two), transfer_seconds(inside, two)
    assert between == pytest.approx(part.bytes / two.chip.outside)
    assert within == inside.sent / two.group_bandwidth(64)
    assert transfer_seconds(whole, two) == pytest.approx(between + within)
    assert transfer_seconds(dataclasses.replace(whole, kind="all-gather"), two) > 10 * between


def test_attention_kernels_compute_more_than_counts_and_less_than_everything():
    flow = load_config(RELEASED).flow
    none = dataclasses.replace(flow, remat="none")
    attention = 3 * sum(4 * n * (n + 1) // 2 * 3072 * layers for n, layers in [(1024, 10), (1152, 24)])
    one = dataclasses.replace(IMAGES, batch=1)
    assert 7 / 6 < kernel_flops(none, one) / attention < 2.5
    assert kernel_flops(flow, one) > kernel_flops(none, one)


# Whole plans


def test_gpus_are_planned_without_a_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = load_config(RELEASED, ["mesh.data=1", "mesh.fsdp=64"])
    plan = make_plan(config, topology("h100:8x8"), IMAGES)
    assert plan.source == "arithmetic" and plan.compile_seconds is None and plan.memory.fits
    assert plan.model_flops == model_flops(config.flow, IMAGES) < plan.hardware_flops
    assert plan.estimate("exposed").seconds > plan.estimate("hidden").seconds
    assert {move.kind for move in plan.transfers} == {"all-gather", "reduce-scatter"}
    inverse = make_plan(config, topology("h100:8x8"), dataclasses.replace(IMAGES, batch=1), "inverse")
    assert inverse.model_flops < plan.model_flops / 1000
    # Ready for inference, parameters are whole on every device, in bfloat16 beside those that are stored.
    stored = load_config(RELEASED, ["mesh.data=1", "mesh.fsdp=64", "sample.parameters=stored"])
    less = make_plan(stored, topology("h100:8x8"), dataclasses.replace(IMAGES, batch=1), "inverse").memory
    assert less.arguments < 2**30
    assert inverse.memory.arguments - less.arguments == pytest.approx(2 * plan.parameters)


def test_slices_are_planned_with_the_network_between_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def planned(topology_name, *mesh):
        config = load_config(RELEASED, ["mesh.data=1", *mesh])
        place = dataclasses.replace(topology(topology_name), slices=config.mesh.slices)
        return make_plan(config, place, IMAGES)

    one, two = planned("h100:8x8", "mesh.fsdp=64"), planned("h100:8x4", "mesh.fsdp=32", "mesh.slices=2")
    assert one.devices == two.devices == 64
    (between,) = (move for move in two.transfers if move.axes == ("slices",))
    assert between.kind == "all-reduce" and between.sent == pytest.approx(4 * two.parameters / 32, rel=0.05)
    assert "2 slices of h100:8x4" in report(two) and "slices 2" in report(two)
    with pytest.raises(ValueError, match=r"mesh.slices must be the number of slices of the topology, 1, got 2"):
        make_plan(load_config(RELEASED, ["mesh.slices=2"]), topology("h100:8x4"), IMAGES)


def test_without_a_compiler_gpus_are_charged_what_they_do(monkeypatch):
    """Sums over tensor-parallel devices in an inverse; attention weights only where cuDNN does not take the call."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    one, four = dataclasses.replace(IMAGES, batch=1), topology("h100:4")
    config = load_config(RELEASED, ["mesh.data=1", "mesh.fsdp=1", "mesh.tensor=4"])
    plan = make_plan(config, four, one, "inverse")
    (move,) = plan.transfers
    deep, chunk = config.flow.blocks[-1], 64  # of the last stage of this schedule
    assert (move.kind, move.axes, move.count) == ("all-reduce", ("tensor",), 2 * deep.layers)
    assert move.sent == pytest.approx(move.count * 2 * (3 / 4) * 2 * chunk * deep.width * 4)
    assert plan.estimate("hidden").collectives > 0
    assert "formulas, not compiled" in report(plan) and "starflow-jax[gpu-compiler]" in report(plan)
    large = topology("h100:8x8")
    fused, stored = (
        make_plan(load_config(RELEASED, ["mesh.fsdp=64", "mesh.data=1", f"flow.kernels={name}"]), large, IMAGES)
        for name in ("auto", "xla")
    )
    assert fused.memory.temporaries < stored.memory.temporaries
    assert fused.estimate("exposed").memory < stored.estimate("exposed").memory


def test_an_inverse_over_heads_or_slots_moves_what_its_cache_needs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    work = Work(1, 21, 22, 40, 256)

    def planned(*overrides):
        config = load_config("experiments/starflow_v_7b.py", ["mesh.data=1", *overrides])
        return make_plan(config, topology("h100:8"), work, "inverse")

    def sent(plan):
        return {(move.kind, move.axes[0]): move.sent for move in plan.transfers}

    heads, slots = (planned("mesh.tensor=2", "mesh.sequence=4", f"flow.cache={mode}") for mode in ("auto", "slots"))
    by_heads, by_slots = sent(heads), sent(slots)
    assert by_heads["all-reduce", "tensor"] == by_slots["all-reduce", "tensor"]
    # Every device receives the other three quarters of the queries, keys and values instead of a quarter of its heads.
    gathered = by_slots["all-gather", "sequence"]
    assert gathered == 24 * 3 * (2 * 512 / 4) * 3 * 4096 * 2 / 2
    assert by_heads["all-to-all", "sequence"] == pytest.approx(gathered / 4 * 4 / 3)
    assert slots.chunks == 49 and "49 chunks at 7 iterations each" in report(slots, 7)


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'starflow-jax\[tpu\]'"):
        ahead.tpu_layout(V5E, MeshConfig())


def test_the_stage_of_an_inverse_reads_parameters_that_are_ready():
    work = dataclasses.replace(STILL, batch=1)
    made, *_, stored = inverse_program(SMALL, work, None).arguments
    kernel, head = made["blocks"]["1"]["proj_in"]["kernel"], made["blocks"]["1"]["proj_out"]["kernel"]
    assert (kernel.dtype, head.dtype) == ("bfloat16", "float32")
    assert stored["blocks"]["1"]["proj_in"]["kernel"].dtype == "float32"
    exact = dataclasses.replace(SMALL, flow=dataclasses.replace(SMALL.flow, dtype="float32"))
    as_stored = dataclasses.replace(SMALL, sample=SampleConfig(parameters="stored"))
    for config in (exact, as_stored):
        params, *others = inverse_program(config, work, None).arguments
        assert params["blocks"]["1"]["proj_in"]["kernel"].dtype == "float32" and len(others) == 3


@pytest.mark.parametrize("program", ["train", "inverse"])
def test_a_tiny_flow_is_compiled_for_tpus(program):
    pytest.importorskip("libtpu")
    work = STILL if program == "train" else dataclasses.replace(STILL, batch=1)
    plan = make_plan(SMALL, V5E, work, program)
    assert plan.source == "compiler" and plan.memory.fits
    # Parameters and moments, halved over fsdp, are most of what goes in.
    if program == "train":
        assert 1.0 < plan.memory.arguments / (12 * plan.parameters / 2) < 1.3
        kinds = {(move.kind, move.axes) for move in plan.transfers}
        assert ("all-gather", ("fsdp",)) in kinds
        assert plan.model_flops < plan.hardware_flops + plan.kernel_flops
    assert [found.name for found in plan.estimates] == ["hidden", "exposed", "compiler"]
    assert "fits" in report(plan) and plan.topology in report(plan)


def test_a_tiny_flow_is_compiled_for_two_slices():
    pytest.importorskip("libtpu")
    config = dataclasses.replace(SMALL, mesh=MeshConfig(slices=2, data=1, fsdp=4))
    plan = make_plan(config, dataclasses.replace(V5E, slices=2), STILL)
    assert {move.axes for move in plan.transfers if move.kind == "all-gather"} == {("fsdp",)}
    (between,) = (move for move in plan.transfers if move.axes and "slices" in move.axes)
    # Each device sends its quarter of the gradients, summed inside the slice.
    assert between.kind == "all-reduce" and 0.9 < between.sent / (4 * plan.parameters / 4) < 1.5


@pytest.mark.slow
def test_a_large_flow_that_does_not_fit_is_short_by_some():
    pytest.importorskip("libtpu")
    config = load_config(RELEASED, ["mesh.data=4", "train.batch_size=4"])
    plan = make_plan(config, V5E, dataclasses.replace(IMAGES, batch=4))
    assert not plan.memory.fits and plan.memory.short > 2**30
    assert plan.estimates == () and "does not fit, short by" in report(plan)


# The command


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--topology", "v9:4x4"], "topology must begin with a known chip"),
        (["--topology", "v5e:8"], "2 axes"),
        (["--topology", "h100:8", "--size", "22"], "ROWSxCOLUMNS"),
        (["--topology", "h100:8", "--text", "0"], "--text must be at least 1"),
        (["--topology", "h100:8", "--program", "sing"], "train, inverse, all"),
        (["--topology", "h100:8", "--config.mesh.data=3"], "mesh must multiply"),
        (["--topology", "h100:8", "--config.mesh.slices=0"], "slices must be an integer >= 1, got 0"),
        (["--topology", "h100:8", "--config.mesh.fsdp=8", "--config.train.batch_size=12"], "multiple of"),
        (["--topology", "h100:8", "--json", "."], "--json must name a file"),
        (["--topology", "h100:8", "--config.mesh.fdsp=8"], "fsdp"),
    ],
)
def test_refusals_are_sentences(arguments, sentence, capsys):
    assert main(["plan", "--config", RELEASED, *arguments]) == 2
    output = capsys.readouterr().err
    assert sentence in output and output.count("\n") == 1


def test_the_command_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # by formulas, with or without the compiler
    path = tmp_path / "plan.json"
    arguments = ["--topology", "h100:8", "--config.mesh.data=1", "--config.mesh.fsdp=8", "--program", "all", "--search"]
    assert main(["plan", "--config", RELEASED, *arguments, "--json", str(path)]) == 0
    output = capsys.readouterr().out
    assert "verdict" in output and "largest batch that fits, to within 3 %" in output
    values = json.loads(path.read_text())
    assert [plan["program"] for plan in values["plans"]] == ["train", "inverse"]
    assert values["largest"]["batch"] % 8 == 0
    fitted = dict(values["largest"]["tried"])
    assert fitted[values["largest"]["batch"]]
    assert any(not fits and batch <= 1.04 * values["largest"]["batch"] + 8 for batch, fits in fitted.items())
