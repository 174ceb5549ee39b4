"""A run goes on with fewer devices: the mesh and the microbatches are adapted, the batches and their order stay."""

from pathlib import Path

import jax
import numpy as np
import pytest
from joined_processes import run_joined

from starflow_jax.core.config import MeshConfig
from starflow_jax.sharding.elastic import adapted
from starflow_jax.training.checkpoints.run_loading import load_run

SCRIPT = Path(__file__).parent / "process_that_fails.py"


@pytest.mark.parametrize(
    ("mesh", "batch", "accumulate", "devices", "expected"),
    [
        # the mesh before, its batch and microbatches, the devices now: (slices, data, fsdp, tensor), microbatches
        ({}, 12, 1, 3, ((1, 3, 1, 1), 1)),
        ({"data": 4}, 12, 1, 4, ((1, 4, 1, 1), 1)),
        ({"data": 4}, 12, 1, 3, ((1, 3, 1, 1), 2)),  # four rows a device instead of three: two microbatches
        ({"data": 1, "fsdp": 4}, 12, 1, 3, ((1, 1, 3, 1), 2)),
        ({"data": 2, "fsdp": 4, "tensor": 2}, 48, 2, 12, ((1, 1, 6, 2), 4)),
        ({"data": 2, "fsdp": 2}, 8, 2, 8, ((1, 4, 2, 1), 1)),
        ({"slices": 2, "data": 1, "fsdp": 4}, 48, 2, 4, ((2, 1, 2, 1), 4)),
        ({"slices": 2, "data": 1, "fsdp": 3}, 6, 1, 3, ((1, 1, 3, 1), 2)),
    ],
)
def test_a_mesh_is_adapted_to_the_devices(mesh, batch, accumulate, devices, expected):
    found, count = adapted(MeshConfig(**mesh), [batch], accumulate, devices)
    assert ((found.slices, found.data, found.fsdp, found.tensor), count) == expected
    assert np.prod(found.sizes(devices)) == devices
    rows = found.slices * found.data * found.fsdp
    assert batch % (rows * count) == 0


def test_slices_are_whole_processes():
    # Four nodes of eight devices, one of them lost: 24 rows would divide into four slices, three processes would not.
    found, _ = adapted(MeshConfig(slices=4, data=1, fsdp=8), [96], 1, 24, processes=3)
    assert (found.slices, found.data, found.fsdp) == (3, 1, 8)
    found, _ = adapted(MeshConfig(slices=4, data=1, fsdp=8), [96], 1, 16, processes=2)
    assert (found.slices, found.fsdp) == (4, 4)
    found, _ = adapted(MeshConfig(slices=4, data=1, fsdp=8), [96], 1, 24, processes=3, slices=3)
    assert found.slices == 3


def test_every_stage_divides():
    found, count = adapted(MeshConfig(data=4), [16, 8], 1, 8)
    assert found.data == 8 and count == 1
    with pytest.raises(ValueError, match=r"multiple of the 3 parts that 3 devices .* got 16; 2 devices would fit"):
        adapted(MeshConfig(data=4), [12, 16], 1, 3)
    with pytest.raises(ValueError, match=r"mesh.tensor x mesh.sequence = 4 must divide the number of devices, got 6"):
        adapted(MeshConfig(tensor=2, sequence=2), [12], 1, 6)
    with pytest.raises(ValueError, match="must be numbers of devices to be adapted, got -1 and 1"):
        adapted(MeshConfig(data=1, tensor=-1), [12], 1, 6)


@pytest.mark.slow
def test_three_processes_go_on_where_one_of_four_was_lost(tmp_path):
    options = ["--config.train.batch_size=12", "--config.mesh.data=4", "--elastic"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    for code, printed, _ in run_joined(SCRIPT, whole, 1, "none", "-1", *options):
        assert code == 0, printed[-3000:]
    found = run_joined(SCRIPT, broken, 4, "killed", "2", *options)
    assert all(code != 0 for code, *_ in found)
    steps = {int(path.name) for path in (broken / "run" / "checkpoints").iterdir() if path.name.isdigit()}
    assert max(steps) == 2
    found = run_joined(SCRIPT, broken, 3, "none", "-1", *options)
    for code, printed, _ in found:
        assert code == 0, printed[-3000:]
    assert "3 devices, mesh data=3" in found[0][1] and "train.accumulate=2" in found[0][1]
    ours, theirs = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(load_run(folder / "run")[2])])
        for folder in (broken, whole)
    )
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)
