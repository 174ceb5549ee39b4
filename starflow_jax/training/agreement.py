"""What the processes of one run decide together; a run of one process asks nobody."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


def everywhere(flag: bool) -> bool:
    """Whether `flag` holds on every process; all of them ask."""
    return bool(_flags(flag).all())


def anywhere(flag: bool) -> bool:
    """Whether `flag` holds on some process; all of them ask."""
    return bool(_flags(flag).any())


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the point called `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"starflow:{name}")


def _flags(flag: bool) -> np.ndarray:
    if jax.process_count() == 1:
        return np.asarray([flag])
    return np.asarray(multihost_utils.process_allgather(np.asarray(flag)))
