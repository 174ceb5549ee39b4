"""Chips and topologies: published peaks, names, and the links that a group of devices has."""

from __future__ import annotations

import pytest

from starflow_jax.costs.chips import CHIPS, GIB, topology


@pytest.mark.parametrize(
    ("name", "chips", "devices"),
    [("v5e:8x8", 64, 64), ("v5p:4x4x4", 64, 64), ("tpu7x:2x2x1", 4, 8), ("h100:8", 8, 8), ("H100:8x4", 32, 32)],
)
def test_topologies_are_read(name, chips, devices):
    found = topology(name)
    assert (found.chips, found.devices) == (chips, devices)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v5x:4x4", "did you mean v5p or v5e"),
        ("abacus:3", "known chips: v4, v5e"),
        ("v5p", "how many chips, as in v5p:4x4x4"),
        ("v5e:0x4", "how many chips"),
        ("v5e:4x4x4", "2 axes, as in v5e:4x4"),
        ("v5p:8x8", "3 axes"),
        ("h100:8x4x2", "GPUs a node x nodes"),
    ],
)
def test_others_are_refused_with_what_is_there(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        topology(name)


def test_a_device_has_its_share_of_a_chip():
    one, two = topology("v5p:2x2x1"), topology("tpu7x:2x2x1")
    assert one.peak == one.chip.peak and two.peak == two.chip.peak / 2
    assert two.bandwidth == two.chip.bandwidth / 2


def test_chips_are_plausible():
    for chip in CHIPS.values():
        # FLOPs a byte of memory traffic: between 100 and 700 for all of them.
        assert 100 < chip.peak / chip.bandwidth < 700
        assert 8 * GIB < chip.usable < 300 * GIB
        if chip.clock:
            units = chip.peak / chip.devices / chip.clock / (2 * chip.unit**2)
            assert 3.5 < units < 9  # matrix units that the published peak and the clock make


def test_groups_send_along_whole_axes_of_the_torus():
    link = CHIPS["v5e"].link
    mesh, torus = topology("v5e:8x8"), topology("v5e:16x16")
    assert mesh.group_bandwidth(8) == link  # an open line
    assert mesh.group_bandwidth(64) == 2 * link
    assert torus.group_bandwidth(16) == 2 * link  # a ring, both ways
    assert torus.group_bandwidth(256) == 4 * link
    assert topology("v5p:4x4x8").group_bandwidth(32) == topology("v5p:4x4x4").group_bandwidth(16)
    # no whole axis: neighbours
    assert mesh.group_bandwidth(3) == link


def test_gpus_leave_the_node_at_the_pace_of_the_network():
    found = topology("h100:8x4")
    assert found.group_bandwidth(8) == found.chip.link
    assert found.group_bandwidth(16) == found.group_bandwidth(32) == found.chip.outside
