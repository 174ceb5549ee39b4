"""Names the process that the others of a run wait for."""

from __future__ import annotations

import platform

import jax
import numpy as np
from jax.experimental import multihost_utils

from starflow_jax.training.distributed.agreement import gather_texts
from starflow_jax.training.loop.speed import Speed


class SlowestProcess:
    """Compares the processes of a run at every row of metrics. Its calls are collectives.

    All processes take the same time for an update, as they wait for one another in its collective operations. What
    differs is the time for which each waits for its own data, so that the process with the longest wait is named.
    """

    def __init__(self) -> None:
        self._hosts = gather_texts(platform.node()) if jax.process_count() > 1 else []

    def sentence(self, speed: Speed, updates: int) -> str | None:
        """The process with the longest data wait, its times per update; None for a single process, or without times.

        Args:
          speed: of this process since the last row; updates: their number.
        """
        if not self._hosts:
            return None
        mine = np.asarray([speed.seconds, speed.waited], np.float64) / max(updates, 1)
        times = np.asarray(multihost_utils.process_allgather(mine.astype(np.float32)))
        if not times.any():
            return None
        slowest = int(times[:, 1].argmax())
        seconds, waited = times[slowest]
        return (
            f"slowest process {slowest} ({self._hosts[slowest]}): {seconds:.3g} s an update, {waited:.3g} s of them "
            "waiting for data"
        )
