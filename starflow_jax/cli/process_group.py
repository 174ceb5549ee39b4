"""The processes of one run: process 0, and the termination of all processes when one fails.

A process that fails writes its error into the key-value store of process 0 (`jax.distributed`), because the others
would wait for it forever. A thread of each process polls the store, even while the program waits. A process that is
killed writes nothing: on CPUs its connections break at once, elsewhere JAX ends the others when its heartbeat has been
missing for `HEARTBEAT_SECONDS`.
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
_POLL_SECONDS = 0.5
# How long process 0 waits for the others to exit: they abort with long messages when the store is gone.
_LEAVE_SECONDS = 10.0
_FAILED, _LEFT, _DONE = "starflow/failed", "starflow/left", "starflow/done"


def is_first() -> bool:
    """Whether this is process 0, which alone writes files and prints."""
    import jax

    return jax.process_index() == 0


class Others:
    """The other processes of a command; there are none until the command joins them (`options.devices.join`)."""

    def __init__(self) -> None:
        self._client: Any = None
        self._process, self._count = 0, 1
        self._stopped = threading.Event()

    def watch(self) -> None:
        """Starts the thread that ends this process when another one has failed."""
        from jax._src.distributed import global_state  # there is no public access to the store

        self._client, self._process = global_state.client, global_state.process_id
        self._count = global_state.num_processes
        threading.Thread(target=self._poll, name="other processes", daemon=True).start()

    @property
    def is_watched(self) -> bool:
        """Whether this process has joined the others."""
        return self._client is not None

    def __bool__(self) -> bool:
        """Whether there are other processes."""
        return self._client is not None and self._count > 1

    def done(self) -> None:
        """Stops the thread."""
        self._stopped.set()

    def wait(self) -> None:
        """Waits until all processes have finished, at most `_LEAVE_SECONDS`."""
        if self:
            with contextlib.suppress(Exception):
                self._client.wait_at_barrier(_DONE, int(1000 * _LEAVE_SECONDS))

    def wait_for_cause(self) -> None:
        """Waits for the error of another process that may have caused that of this one; the thread then ends it."""
        if self:
            time.sleep(4 * _POLL_SECONDS)

    def end(self, code: int, message: str) -> None:
        """Ends the other processes with this exit code and message."""
        self._stopped.set()
        if not self:
            return
        with contextlib.suppress(Exception):  # another process was first, or the store is gone
            self._client.key_value_set(_FAILED, json.dumps([self._process, code, message]))
        self._leave({self._process})

    def _poll(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            try:
                process, code, message = json.loads(self._client.key_value_try_get(_FAILED))
            except Exception:
                continue
            if self._stopped.is_set():
                return
            sys.stdout.flush()
            sys.stderr.write(f"starflow: ended because process {process} failed: {message}\n")
            sys.stderr.flush()
            self._leave({self._process, process})
            os._exit(code)

    def _leave(self, exited: set[int]) -> None:
        """Announces that this process exits; process 0, which holds the store, waits for the others."""
        with contextlib.suppress(Exception):
            if self._process:
                self._client.key_value_set(f"{_LEFT}/{self._process}", "")
                return
            end = time.monotonic() + _LEAVE_SECONDS
            while time.monotonic() < end and len(exited) < self._count:
                left = self._client.key_value_dir_get(_LEFT)
                exited |= {int(name.rpartition("/")[2]) for name, _ in left}
                time.sleep(0.1)
            time.sleep(0.2)  # between the announcement of the last process and its exit
