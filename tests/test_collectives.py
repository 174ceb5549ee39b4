"""Collectives are found in every form that compilers write them, with their groups, bytes and repetitions."""

from __future__ import annotations

import math

import pytest

from starflow_jax.planning.collectives import Collective, collectives, mesh_axes, replica_groups
from starflow_jax.planning.hlo import parse

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def program(*lines: str, more: str = "") -> str:
    """A program of 8 devices with these lines at its top level."""
    body = "\n".join(f"  {line}" for line in lines)
    head = "HloModule m, is_scheduled=true, num_partitions=8\n"
    return f"{head}{more}\nENTRY %main (p: f32[4,8]) -> f32[4,8] {{\n  %p = f32[4,8]{{1,0}} parameter(0)\n{body}\n}}\n"


def one(*lines: str, more: str = "") -> Collective:
    (found,) = collectives(program(*lines, more=more))
    return found


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", (0, 1)),
        ("replica_groups=[4,2]<=[8]", (0, 1)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=(7,6,5,4,3,2,1,0) {'b'}", (7, 6)),
    ],
)
def test_every_form_of_groups_partitions_the_devices(text, first):
    groups = replica_groups(f"channel_id=1, {text}, dimensions={{0}}")
    assert groups[0] == first
    assert sorted(device for group in groups for device in group) == list(range(8))
    assert {len(group) for group in groups} == {len(first)}


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match="replica_groups must be"):
        replica_groups("replica_groups=else")


def test_bytes_are_those_of_the_whole_array_of_a_group():
    gather = one("%g = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), replica_groups=[4,2]<=[8], dimensions={0}")
    scatter = one("%s = f32[2,8]{1,0} reduce-scatter(%p), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add")
    reduce = one("%r = f32[4,8]{1,0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add")
    assert (gather.kind, gather.shape, gather.dtype, gather.bytes) == ("all-gather", (8, 8), "bf16", 128)
    assert (scatter.kind, scatter.shape, scatter.bytes) == ("reduce-scatter", (4, 8), 128)
    # A reduce-scatter and then an all-gather is an all-reduce.
    assert reduce.sent == scatter.sent + scatter.sent == 128


def test_groups_are_named_by_the_axes_they_run_along():
    def axes(groups: str, sizes=MESH):
        return mesh_axes(one(f"%r = f32[4,8]{{1,0}} all-reduce(%p), replica_groups={groups}, to_apply=%add"), sizes)

    assert axes("[4,2]<=[8]") == ("tensor",)
    assert axes("[2,4]<=[4,2]T(1,0)") == ("data", "fsdp")
    assert axes("{}") == ("data", "fsdp", "tensor")
    assert axes("{{0,3},{1,2},{4,7},{5,6}}") is None
    assert axes("[4,2]<=[8]", {"data": 4}) is None


def test_start_and_done_are_one_transfer():
    gather = one(
        "%g = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%p), replica_groups=[4,2]<=[8], dimensions={0}",
        "%d = f32[8,8]{1,0} all-gather-done(%g)",
    )
    send = one(
        "%s = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), "
        "source_target_pairs={{0,2},{2,0}}",
        "%t = f32[4,8]{1,0} collective-permute-done(%s)",
    )
    assert gather.shape == (8, 8) and gather.overlapped
    assert send.sent == 128 and send.overlapped and mesh_axes(send, MESH) == ("fsdp",)


BETWEEN = (
    'is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.2_0",'
    '_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="%s"}'
)


@pytest.mark.parametrize(("work", "overlapped"), [("negate(%p)", False), ("fusion(%p), calls=%f", True)])
def test_slices_exchange_through_their_hosts(work, overlapped):
    """The text is that of one slice, of eight devices."""
    found = one(
        "%a = token[] after-all()",
        f"%s = (f32[4,8]{{1,0}}, u32[], token[]) send(%p, %a), channel_id=2, {BETWEEN % 'ALL_REDUCE'}",
        f"%r = (f32[4,8]{{1,0}}, u32[], token[]) recv(%a), channel_id=1, {BETWEEN % 'ALL_REDUCE'}",
        f"%n = f32[4,8]{{1,0}} {work}",
        "%e = (f32[4,8]{1,0}, token[]) recv-done(%r), channel_id=1, is_host_transfer=true",
        "%d = token[] send-done(%s), channel_id=2, is_host_transfer=true",
    )
    assert (found.kind, found.bytes, found.group_size, found.overlapped) == ("all-reduce", 128, 2, overlapped)
    assert mesh_axes(found, {"slices": 2, **MESH}) == ("slices",)
    # Of a group without devices, all those of a slice.
    inside = one("%r = f32[4,8]{1,0} all-reduce(%p), replica_groups={}, to_apply=%add")
    assert mesh_axes(inside, {"slices": 2, **MESH}) == ("data", "fsdp", "tensor")


def test_other_transfers_to_a_host_are_none():
    assert collectives(program("%s = (f32[4,8]{1,0}, u32[], token[]) send(%p, %p), is_host_transfer=true")) == []


def test_an_operation_on_several_arrays_is_as_many_collectives():
    found = collectives(
        program("%r = (f32[4,8]{1,0}, bf16[2]{0}) all-reduce(%p, %q), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%a")
    )
    assert [(c.dtype, c.shape, c.group_size) for c in found] == [("f32", (4, 8), 8), ("bf16", (2,), 8)]


def test_the_parts_of_an_all_to_all_are_one_array():
    parts = one("%t = (f32[2,8]{1,0}, f32[2,8]{1,0}) all-to-all(%p, %q), replica_groups=[4,2]<=[8]")
    whole = one("%t = f32[2,2,8]{2,1,0} all-to-all(%p), replica_groups=[4,2]<=[8], dimensions={0}")
    assert parts.shape == whole.shape == (2, 2, 8) and parts.sent == whole.sent == 64


def loop(condition: str, start: int = 0, step: int = 1, backend: str = "") -> str:
    """A loop around one all-reduce, and the two computations it calls."""
    more = f"""
%body (c: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {{
  %c = (s32[], f32[4,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[4,8]{{1,0}} get-tuple-element(%c), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  %r = f32[4,8]{{1,0}} all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[4,8]{{1,0}}) tuple(%next, %r)
}}

%cond (c: (s32[], f32[4,8])) -> pred[] {{
  %c = (s32[], f32[4,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
{condition}
}}
"""
    return program(
        f"%zero = s32[] constant({start})",
        "%init = (s32[], f32[4,8]{1,0}) tuple(%zero, %p)",
        f"%w = (s32[], f32[4,8]{{1,0}}) while(%init), condition=%cond, body=%body{backend}",
        more=more,
    )


COUNTED = "  %n = s32[] constant(6)\n  ROOT %lt = pred[] compare(%i, %n), direction=LT"
GIVEN = "  ROOT %lt = pred[] compare(%i, %i), direction=LT"


@pytest.mark.parametrize(
    ("text", "times"),
    [
        (loop(COUNTED), 6),
        (loop(COUNTED, start=2), 4),
        (loop(COUNTED, step=4), 2),
        (loop(GIVEN), 1),
        (loop(GIVEN, backend=', backend_config={"known_trip_count":{"n":"9"},"x":1}'), 9),
    ],
)
def test_a_loop_counts_its_turns(text, times):
    (found,) = collectives(text)
    assert found.times == times and found.computation == "body"


def test_what_a_loop_calls_runs_inside_it():
    text = loop(GIVEN).replace("all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%add", "fusion(%x), calls=%fused")
    fused = (
        "%fused (x: f32[4,8]) -> f32[4,8] {\n  %x = f32[4,8]{1,0} parameter(0)\n  ROOT %n = f32[4,8]{1,0} negate(%x)\n}"
    )
    text = text.replace("\n%body", f"\n{fused}\n\n%body", 1)
    assert parse(text).inside_loops() == {"body", "fused"}
    assert parse(program("%n = f32[4,8]{1,0} negate(%p)")).inside_loops() == set()


def test_a_transfer_spread_over_fusions_counts_once():
    part = """
%start (a: f32[4,8]) -> (f32[8,8], u32[]) {
  %a = f32[4,8]{1,0} parameter(0)
  %g.1 = f32[8,8]{1,0} all-gather(%a), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
  ROOT %k = (f32[8,8]{1,0}, u32[]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (a: f32[4,8]) -> f32[8,8] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %g.2 = f32[8,8]{1,0} all-gather(%a), channel_id=3, replica_groups=[4,2]<=[8], dimensions={0}
}

%all-reduce-scatter.1 (b: f32[4,8]) -> f32[2,8] {
  %b = f32[4,8]{1,0} parameter(0)
  %r = f32[4,8]{1,0} all-reduce(%b), channel_id=4, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %s = f32[2,8]{1,0} dynamic-slice(%r, %z), dynamic_slice_sizes={2,8}
}
"""
    text = program(
        "%x = (f32[8,8]{1,0}, u32[]) fusion(%p), kind=kCustom, calls=%start",
        "%y = f32[8,8]{1,0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.1",
        "%z = f32[2,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1",
        more=part,
    )
    gather, scatter = collectives(text)
    assert (gather.kind, gather.overlapped, gather.name) == ("all-gather", True, "g.1")
    assert (scatter.kind, scatter.overlapped, scatter.shape) == ("reduce-scatter", False, (4, 8))


@pytest.mark.parametrize("sliced", [True, False])
def test_a_reduction_that_is_cut_afterwards_is_known(sliced):
    fusion = """
%cut (a: f32[4,8], i: s32[]) -> f32[2,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %h = bf16[4,8]{1,0} convert(%a)
  ROOT %s = bf16[2,8]{1,0} dynamic-slice(%h, %i, %i), dynamic_slice_sizes={2,8}
}
"""
    lines = [
        "%r = f32[4,8]{1,0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add",
        "%c = bf16[2,8]{1,0} fusion(%r, %i), kind=kLoop, calls=%cut",
    ]
    found = one(*lines, *([] if sliced else ["%n = f32[4,8]{1,0} negate(%r)"]), more=fusion)
    assert found.sliced is sliced


@pytest.mark.parametrize(
    ("start", "called"), [("async-start", "calls=%behind"), ("call-start", 'thread="sparsecore", to_apply=%behind')]
)
def test_what_is_started_in_the_background_runs_beside_other_work(start, called):
    behind = """
%behind (a: f32[4,8]) -> f32[2,8] {
  %a = f32[4,8]{1,0} parameter(0)
  ROOT %s = f32[2,8]{1,0} reduce-scatter(%a), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add
}, execution_thread="sparsecore"
"""
    lines = [
        f"%b = ((f32[4,8]{{1,0}}, token[]), f32[2,8]{{1,0}}) {start}(%p), {called}",
        f"%d = f32[2,8]{{1,0}} {start.replace('start', 'done')}(%b)",
    ]
    found = one(*lines, more=behind)
    assert (found.kind, found.overlapped, found.times, found.shape) == ("reduce-scatter", True, 1, (4, 8))


def test_attributes_over_several_lines_end_no_computation():
    kernel = '%k = f32[4,8]{1,0} custom-call(%p), frontend_attributes={kernel_metadata={\n"a":1\n}}, backend_config={}'
    found = one(kernel, "%r = f32[4,8]{1,0} all-reduce(%k), replica_groups=[4,2]<=[8], to_apply=%add")
    assert found.kind == "all-reduce"


def test_devices_alone_are_no_collective():
    assert collectives(program("%r = f32[4,8]{1,0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add")) == []


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("nothing")


def test_sent_bytes_grow_towards_the_whole_array_with_the_group():
    sent = [Collective("all-gather", 1024, (256,), "f32", (tuple(range(n)),), n, 1, "", "").sent for n in (2, 4, 8, 64)]
    assert sent == sorted(sent) and math.isclose(sent[-1], 1024, rel_tol=0.02)
