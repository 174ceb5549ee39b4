"""Saves and restores one state over other devices and processes: `python layouts_of_checkpoints.py ...`.

  save PORT INDEX WORKDIR     as one of two processes with two devices each; process 1 alone is asked to stop
  restore WORKDIR             as one process with four devices, over several meshes

XLA_FLAGS says how many devices a process has.
"""

import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from killed_run import CONFIG

from starflow_jax.training.checkpoints.manager import Checkpoints, abstract_state
from starflow_jax.training.distributed.agreement import everywhere, on_first_process, total
from starflow_jax.training.loop.signals import stop_requests


def laid_out(like, mesh):
    """ShapeDtypeStructs whose last axis is sharded over all devices where it divides."""

    def placed(leaf):
        whole = leaf.ndim == 0 or leaf.shape[-1] % mesh.size
        spec = PartitionSpec() if whole else PartitionSpec(*[None] * (leaf.ndim - 1), mesh.axis_names)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(placed, like)


def numbered(like):
    """A state of distinct random values with the shardings of `like`."""
    leaves, structure = jax.tree.flatten(like)
    filled = []
    for place, leaf in enumerate(leaves):
        values = np.random.default_rng(place).integers(0, 99, leaf.shape).astype(leaf.dtype)
        filled.append(jax.make_array_from_callback(leaf.shape, leaf.sharding, values.__getitem__))
    return jax.tree.unflatten(structure, filled)


def save(port, index, workdir):
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    assert (everywhere(index == 1), everywhere(index < 2), total(index)) == (False, True, 1)
    on_first_process(lambda: Path(workdir).mkdir(), "the folder")
    try:
        on_first_process(lambda: int("no number"), "a number")
    except ValueError as error:
        print("refused:", error)
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    like = laid_out(abstract_state(CONFIG), mesh)
    state = numbered(like).replace(step=jax.device_put(np.int32(7), NamedSharding(mesh, PartitionSpec())))
    with Checkpoints(Path(workdir), CONFIG, write=True) as checkpoints:
        checkpoints.save(state, {"next_index": 7})
        restored, _ = checkpoints.restore(like)
    same = all(
        np.array_equal(a.addressable_data(0), b.addressable_data(0))
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    )
    assert same
    with stop_requests() as stop:
        asked = []
        for call in range(6):
            if index == 1 and call == 2:
                signal.raise_signal(signal.SIGTERM)
            asked.append(stop.agreed())
        print("asked:", *map(int, asked))


def restore(workdir):
    devices = np.asarray(jax.devices())
    like = abstract_state(CONFIG)
    one = Mesh(devices[:1], ("all",))
    expected = numbered(laid_out(like, one)).replace(step=np.int32(7))
    for mesh in (one, Mesh(devices[:2], ("all",)), Mesh(devices.reshape(2, 2), ("a", "b"))):
        with Checkpoints(Path(workdir), CONFIG) as checkpoints:
            state, place = checkpoints.restore(laid_out(like, mesh))
        assert place == {"next_index": 7}
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            assert a.sharding.mesh == mesh and np.array_equal(a, b)
        print("restored over", mesh.size)


if sys.argv[1] == "save":
    save(sys.argv[2], int(sys.argv[3]), sys.argv[4])
else:
    restore(sys.argv[2])
