"""How Orbax writes the parts of a checkpoint: all processes into one folder, or every process into one of its own.

In a common folder, the processes write one database of arrays (OCDBT) together, and wait for one another. In folders of
their own, every process writes all shards of its devices, replicas of other processes' included, as files of zarr
(`training.hosts.array_files`), and the JSON parts; it waits for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from starflow_jax.training.checkpoints.retention import NewestAndBest


def open_manager(folder: Path, policy: NewestAndBest | None, own: Iterable[str] = ()) -> ocp.CheckpointManager:
    """The manager of a folder of checkpoints.

    Args:
      policy: of retention; None for a folder that is only read, in which unfinished checkpoints are left alone.
      own: names of the parts that hold arrays, where this process alone writes into the folder.
    """
    write, own = policy is not None, tuple(own)
    alone = _alone() if own else ocp.options.MultiprocessingOptions()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        create=write and not own,
        # removes the incomplete files of a killed run
        cleanup_tmp_directories=write,
        lightweight_initialize=True,
        multiprocessing_options=alone,
        # Orbax waits for folders by signals in the store of `jax.distributed`, whose names are those of all processes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=not own),
    )
    if not own:
        return ocp.CheckpointManager(folder, options=options)
    folder.mkdir(parents=True, exist_ok=True)  # Orbax makes no folder that is not common
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name in own:
        registry.add(name, ocp.args.PyTreeSave, _shard_handler(alone))
    registry.add(None, ocp.args.JsonSave, ocp.JsonCheckpointHandler(multiprocessing_options=alone))
    return ocp.CheckpointManager(folder, options=options, handler_registry=registry)


def save_arguments(trees: Mapping[str, Any], values: Mapping[str, Any], *, own: bool) -> ocp.args.Composite:
    """The parts of one checkpoint for `CheckpointManager.save`.

    Args:
      trees: of arrays by the name of their part; values: of JSON; own: whether this process alone writes the folder.
    """
    arrays: Any = ocp.args.PyTreeSave if own else ocp.args.StandardSave
    arguments: dict[str, Any] = {name: arrays(tree) for name, tree in trees.items()}
    return ocp.args.Composite(**arguments, **{name: ocp.args.JsonSave(value) for name, value in values.items()})


def _alone() -> ocp.options.MultiprocessingOptions:
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes={index}, barrier_sync_key_prefix=f"process{index}"
    )


def _shard_handler(alone: ocp.options.MultiprocessingOptions) -> ocp.PyTreeCheckpointHandler:
    # With `replica_id` None every process writes one replica of each shard that its devices hold.
    arrays = type_handlers.ArrayHandler(primary_host=None, replica_id=None, use_replica_parallel=False)
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_zarr3=True,
        multiprocessing_options=alone,
        type_handler_registry=type_handlers.create_type_handler_registry((jax.Array, arrays)),
    )
