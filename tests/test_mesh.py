"""A flow over a mesh computes what one device computes, and moves between devices only what its layout needs."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from eight_devices import MESHES, STARFLOW

from starflow_jax.core.config import MeshConfig
from starflow_jax.core.config.mesh_config import AXES
from starflow_jax.planning.collectives import collectives, mesh_axes
from starflow_jax.sharding.layout import Layout
from starflow_jax.sharding.mesh import check_fit, make_layout
from starflow_jax.sharding.rules import partition_spec
from starflow_jax.training.checkpoints.manager import abstract_state

FLAGS = "--xla_force_host_platform_device_count=8"
QUICK = ["fsdp 2, tensor 2, sequence 2"]
OTHERS = [*(name for name in MESHES if name not in QUICK), "one device, accumulated", "fsdp 4, tensor 2, accumulated"]


def cases(*left_out):
    """Every case, those that need another run of the script as slow tests."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS if name not in left_out]
    return [*(name for name in QUICK if name not in left_out), *slow]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("others"), OTHERS)


@pytest.fixture
def found(request):
    name = request.node.callspec.params["name"]
    return request.getfixturevalue("quick" if name in QUICK else "others")


def measured(out, names):
    """What `eight_devices.py` measured, and the compiled programs."""
    script = Path(__file__).parent / "eight_devices.py"
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"}
    run = subprocess.run(
        [sys.executable, str(script), str(out), *names], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Involuntary" not in run.stderr  # the compiler's word for a layout that it can only reach by gathering
    programs = {name: collectives((out / f"{name}.hlo").read_text()) for name in names}
    return json.loads(run.stdout), programs


@pytest.mark.parametrize("name", cases())
def test_five_updates_are_those_of_one_device(found, name):
    errors = found[0][name]
    for quantity in ("loss", "gradients", "parameters"):
        assert errors[quantity] <= 1e-5, (quantity, errors[quantity])
    assert errors["stays"]


def test_parameters_are_cut_as_the_table_says(quick):
    places = quick[0]["fsdp 2, tensor 2, sequence 2"]["places"]
    block = "blocks/1/transformer/layers/"
    assert places[f"{block}attention/qkv/kernel"] == "P(None, 'fsdp', 'tensor', None, None)"
    assert places[f"{block}mlp/down/kernel"] == "P(None, 'tensor', 'fsdp')"
    assert places[f"{block}mlp/norm/weight"] == "P(None, None)"


def kernel_shapes():
    """Every kernel's shape over a layout, one layer of it."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_state(STARFLOW).params)
    return {
        tuple(leaf.shape[1:] if "layers" in jax.tree_util.keystr(path) else leaf.shape)
        for path, leaf in leaves
        if "kernel" in jax.tree_util.keystr(path)
    }


def is_part_of(shape, whole):
    """Whether an array is a kernel, or what tensor parallelism leaves of it on a device (with a layer's own axis)."""
    shape = shape[1:] if shape[:1] == (1,) else shape
    return len(shape) == len(whole) and all(a in (b, b // 2) for a, b in zip(shape, whole, strict=True))


@pytest.mark.parametrize("name", cases("one device, accumulated", "fsdp 4, tensor 2, accumulated"))
def test_only_what_the_layout_needs_is_moved(found, name):
    mesh, moved = MESHES[name], found[1][name]
    kinds = {collective.kind for collective in moved}
    # Sums of gradients over the batch, everywhere. No compiler pass makes reduce-scatters of them on CPUs.
    allowed = {"all-reduce"}
    if mesh.fsdp > 1:
        allowed |= {"all-gather"}
        assert "all-gather" in kinds
    if mesh.tensor > 1:  # sums of small gradients, moved to where their part belongs
        allowed |= {"collective-permute"}
    if mesh.sequence > 1:
        # heads for tokens and back; the shift by one token; tokens (of few channels) put into pictures
        allowed |= {"all-to-all", "collective-permute", "all-gather"}
        assert "all-to-all" in kinds
    assert kinds <= allowed
    channels = STARFLOW.flow.token_channels
    for collective in moved:
        if collective.kind == "all-gather":
            is_kernel = any(is_part_of(collective.shape, whole) for whole in kernel_shapes())
            # Neither is a hidden state of the whole sequence: tokens of few channels, and the text alone.
            few = collective.shape[-1] == channels or collective.shape[-2] <= STARFLOW.flow.text_length
            is_tokens = mesh.sequence > 1 and few
            assert is_kernel or is_tokens, collective
        if collective.kind == "collective-permute":
            # What the four text tokens displace of each of at most eight rows, or part of a small gradient.
            assert np.prod(collective.shape) <= 8 * (4 // 2) * 160, collective


@pytest.mark.slow
def test_only_sums_cross_slices(others):
    """Parameters are cut and gathered inside a slice; of gradients, sums cross."""
    sizes = dict(zip(AXES, MESHES["slices 2, fsdp 4"].sizes(8), strict=True))
    moved = [(one.kind, mesh_axes(one, sizes), one.shape) for one in others[1]["slices 2, fsdp 4"]]
    assert {axes for kind, axes, _ in moved if kind == "all-gather"} == {("fsdp",)}
    crossing = [(kind, axes, shape) for kind, axes, shape in moved if "slices" in axes]
    assert {kind for kind, *_ in crossing} == {"all-reduce"}
    # Kernels' gradients are summed inside a slice first: each device exchanges its quarter of them.
    kernels = [shape for _, axes, shape in crossing if axes == ("slices",)]
    assert len(kernels) > 15 and all(
        any(4 * np.prod(shape) == np.prod(whole) for whole in kernel_shapes()) for shape in kernels
    )
    assert all(len(shape) < 2 for _, axes, shape in crossing if axes != ("slices",))  # biases, norms and losses


@pytest.mark.slow
def test_kernels_are_gathered_once_a_pass(others):
    """Forward, recomputed with the rest of the layer, and for the gradient of the input: three times at most."""
    kernels = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state(STARFLOW).params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "fsdp" in partition_spec(name, leaf.ndim):
            kernels += leaf.shape[0] if "layers" in name else 1
    gathers = sum(c.times for c in others[1]["slices 2, fsdp 4"] if c.kind == "all-gather")
    assert kernels <= gathers <= 3 * kernels


REFUSALS = {
    "two rests": (lambda: MeshConfig(data=-1, fsdp=-1), "at most one axis of the mesh may be -1, got data and fsdp"),
    "zero": (lambda: MeshConfig(tensor=0), "tensor must be at least 1, or -1 for all other devices, got 0"),
    "too many": (lambda: MeshConfig(data=1, fsdp=3).sizes(8), "mesh must multiply to the 8 available devices"),
    "no divisor": (lambda: MeshConfig(fsdp=3).sizes(8), "mesh must multiply to the 8 available devices"),
    "slices in half": (lambda: MeshConfig(slices=2, fsdp=3).sizes(8), "devices, got slices=2, data=-1, fsdp=3"),
    "the rest of slices": (lambda: MeshConfig(slices=-1, data=1), "slices must be an integer >= 1, got -1"),
    "parts of processes": (lambda: slices_of(2, ["cpu"] * 6, [0, 0, 1, 1, 2, 2]), "the number of processes, 3, or be"),
    "one of two slices": (lambda: slices_of(1, ["tpu"] * 4, [0, 1, 2, 3]), "that the TPUs are in, 2, got 1"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_meshes_that_cannot_be_are_refused(name):
    make, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        make()


def slices_of(slices, platforms, processes):
    """A mesh over devices that do not exist, those of two processes in one slice."""
    devices = [
        SimpleNamespace(platform=platform, process_index=process, slice_index=process // 2)
        for platform, process in zip(platforms, processes, strict=True)
    ]
    return make_layout(MeshConfig(slices=slices), devices)


class FakeMesh:
    """As much of a mesh as `check_fit` reads."""

    def __init__(self, **shape):
        self.shape = {"slices": 1, "data": 1, "fsdp": 1, "tensor": 1, "sequence": 1} | shape


def test_what_does_not_divide_is_refused():
    for shape, batch, parts, message in (
        ({"data": 4, "fsdp": 2}, 12, 1, "must be a multiple of mesh.data x mesh.fsdp = 8, got 12 / 1 = 12"),
        ({"data": 4}, 16, 8, "got 16 / 8 = 2"),
        ({"slices": 2, "data": 4}, 12, 1, "multiple of mesh.slices x mesh.data x mesh.fsdp = 8, got 12 / 1"),
        ({"tensor": 3}, 16, 1, "mesh.tensor x mesh.sequence must divide the heads of every block, got 3 x 1"),
        ({"sequence": 8}, 16, 1, "got 1 x 8 for one of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            check_fit(Layout(FakeMesh(**shape)), STARFLOW.flow, batch, parts)
    check_fit(None, STARFLOW.flow, 3)


def test_tokens_that_do_not_divide_are_refused():
    layout = Layout(FakeMesh(sequence=4))
    check_fit(layout, STARFLOW.flow, 16, 1, (2, 4, 4, 2))
    with pytest.raises(ValueError, match=r"mesh.sequence must divide the tokens that block 0 reads, 18 and 0 of text"):
        check_fit(layout, STARFLOW.flow, 16, 1, (2, 6, 3, 2))
    deep_alone = dataclasses.replace(STARFLOW.flow, layers_per_block=(0, 2))
    with pytest.raises(ValueError, match="block 1 reads, 20 and 4 of text"):
        check_fit(Layout(FakeMesh(sequence=5)), deep_alone, 15, 1, (2, 5, 2, 2))


def test_one_device_needs_no_layout():
    assert make_layout(MeshConfig(), jax.devices()[:1]) is None
    assert MeshConfig(data=2, tensor=2).sizes(4) == (1, 2, 1, 2, 1)
    assert MeshConfig(fsdp=2, data=-1).sizes(8) == (1, 4, 2, 1, 1)
    assert MeshConfig(slices=2, fsdp=2).sizes(8) == (2, 2, 2, 1, 1)
