"""What the processes of one run decide together; a run of one process asks nobody."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def everywhere(flag: bool) -> bool:
    """Whether `flag` holds on every process; all of them ask."""
    return bool(_flags(flag).all())


def total(value: int) -> int:
    """The sum of `value` over all processes; all of them ask."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.asarray(value)).sum())


def all_texts(text: str) -> list[str]:
    """The `text` of every process, by number of the process; all of them ask."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:size]).decode("utf-8", "surrogateescape") for row, size in zip(rows, sizes, strict=True)]


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the point called `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"starflow:{name}")


def ask_largest(value: int) -> Callable[[], int]:
    """Asks for the largest `value` of all processes without waiting; all of them ask.

    Returns:
      What waits for the answer. The question stands in the queue of the devices behind what was asked of them before;
      a CPU has no such queue, and must have nothing else to do.
    """
    if jax.process_count() == 1:
        return lambda: value
    devices = np.asarray(jax.devices()).reshape(jax.process_count(), -1)
    mesh = jax.sharding.Mesh(devices, ("process", "device"))
    by_process = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("process"))
    values = jax.make_array_from_process_local_data(by_process, np.asarray([value], np.int32))
    largest = jax.jit(jnp.max, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))(values)
    if jax.default_backend() == "cpu":
        # There programs run side by side, and two that ask other processes could wait for each other.
        answer = int(largest)
        return lambda: answer
    return lambda: int(largest)


def first_does(action: Callable[[], None], what: str) -> None:
    """Runs `action` on the first process, with every other waiting for it.

    Raises:
      ValueError: the one that `action` raised, there; a sentence about `what` on the others.
    """
    problem: ValueError | None = None
    if jax.process_index() == 0:
        try:
            action()
        except ValueError as error:
            problem = error
    if not everywhere(problem is None):
        raise problem or ValueError(f"{what} was refused by the first process")


def _flags(flag: bool) -> np.ndarray:
    if jax.process_count() == 1:
        return np.asarray([flag])
    return np.asarray(multihost_utils.process_allgather(np.asarray(flag)))
