"""The processes of one run end together: one that fails says so to the others, which would wait for it for ever.

What is said goes through the key-value store that the first process keeps for all (`jax.distributed`); a thread looks
there, whatever the program waits for. A process that is killed says nothing: its connections break at once on CPUs, and
elsewhere JAX ends the others when its heartbeat has been missing for `HEARTBEAT_SECONDS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

HEARTBEAT_SECONDS = 60
_LOOK_SECONDS = 0.5
# That the first process waits for the others to leave: they abort, at length, when the store is gone.
_LEAVE_SECONDS = 10.0
_FAILED, _LEFT, _DONE = "starflow/failed", "starflow/left", "starflow/done"


class Others:
    """The other processes of a command; none until it joins them."""

    def __init__(self) -> None:
        self._client: Any = None
        self._process, self._count = 0, 1
        self._over = threading.Event()

    def watch(self) -> None:
        """From now on, this process ends when another has failed."""
        from jax._src.distributed import global_state  # there is no public way to the store

        self._client, self._process = global_state.client, global_state.process_id
        self._count = global_state.num_processes
        threading.Thread(target=self._look, name="other processes", daemon=True).start()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self._client is not None and self._count > 1

    def done(self) -> None:
        """Watches no longer."""
        self._over.set()

    def wait(self) -> None:
        """Returns when all have come to their end, as this one has, or after a while."""
        if self:
            with contextlib.suppress(Exception):
                self._client.wait_at_barrier(_DONE, int(1000 * _LEAVE_SECONDS))

    def hear(self) -> None:
        """Time to hear of a failure elsewhere that is the cause of one here; this process then ends."""
        if self:
            time.sleep(4 * _LOOK_SECONDS)

    def tell(self, code: int, sentence: str) -> None:
        """Lets the others end, with this exit code, because of what happened here."""
        self._over.set()
        if not self:
            return
        with contextlib.suppress(Exception):  # another was faster, or the store is gone
            self._client.key_value_set(_FAILED, json.dumps([self._process, code, sentence]))
        self._leave({self._process})

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            try:
                process, code, sentence = json.loads(self._client.key_value_try_get(_FAILED))
            except Exception:
                continue
            if self._over.is_set():
                return
            sys.stdout.flush()
            sys.stderr.write(f"starflow: ended with process {process}, which failed: {sentence}\n")
            sys.stderr.flush()
            self._leave({self._process, process})
            os._exit(code)

    def _leave(self, gone: set[int]) -> None:
        """Says that this process goes; the first one, which keeps the store, goes last."""
        with contextlib.suppress(Exception):
            if self._process:
                self._client.key_value_set(f"{_LEFT}/{self._process}", "")
                return
            end = time.monotonic() + _LEAVE_SECONDS
            while time.monotonic() < end and len(gone) < self._count:
                left = self._client.key_value_dir_get(_LEFT)
                gone |= {int(name.rpartition("/")[2]) for name, _ in left}
                time.sleep(0.1)
            time.sleep(0.2)  # from saying so to going
