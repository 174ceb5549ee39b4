"""Collective decisions of the processes of one run; with a single process they return at once."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def everywhere(flag: bool) -> bool:
    """Whether `flag` is true on every process. A collective: all processes call it."""
    return bool(_flags(flag).all())


def total(value: int) -> int:
    """The sum of `value` over all processes. A collective."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.asarray(value)).sum())


def gather_texts(text: str) -> list[str]:
    """The `text` of every process, in the order of their indices. A collective."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:size]).decode("utf-8", "surrogateescape") for row, size in zip(rows, sizes, strict=True)]


def barrier(name: str) -> None:
    """A barrier: returns when every process has called it with this `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"starflow:{name}")


def start_maximum(value: int) -> Callable[[], int]:
    """Starts a reduction to the largest `value` of all processes without waiting for it. A collective.

    Returns:
      A function that waits for the result. The reduction is queued on the devices behind earlier programs; CPUs have
      no such queue, so they must be idle.
    """
    if jax.process_count() == 1:
        return lambda: value
    devices = np.asarray(jax.devices()).reshape(jax.process_count(), -1)
    mesh = jax.sharding.Mesh(devices, ("process", "device"))
    by_process = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("process"))
    values = jax.make_array_from_process_local_data(by_process, np.asarray([value], np.int32))
    largest = jax.jit(jnp.max, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))(values)
    if jax.default_backend() == "cpu":
        # CPU programs run concurrently, and two collectives could wait for each other.
        result = int(largest)
        return lambda: result
    return lambda: int(largest)


def on_first_process(action: Callable[[], None], what: str) -> None:
    """Runs `action` on the first process while the others wait. A collective.

    Raises:
      ValueError: on the first process the error of `action`; on the others a message that names `what`.
    """
    problem: ValueError | None = None
    if jax.process_index() == 0:
        try:
            action()
        except ValueError as error:
            problem = error
    if not everywhere(problem is None):
        raise problem or ValueError(f"{what} failed on the first process")


def _flags(flag: bool) -> np.ndarray:
    if jax.process_count() == 1:
        return np.asarray([flag])
    return np.asarray(multihost_utils.process_allgather(np.asarray(flag)))
