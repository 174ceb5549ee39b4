"""Local folders of hosts that share no disk, each in a thread, and small checkpoints that the hosts write in parts."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from storage_faults import filled

from starflow_jax.core.storage.lease import Timing
from starflow_jax.training.hosts import host_folder
from starflow_jax.training.hosts.host_folder import Group, HostFolder

SHARDS = 4  # of the array in every checkpoint


class Hosts:
    """Threads that stand for the processes of a run; each has a folder of local copies.

    Args:
      store: of the address; folder: of all disks; count: number of hosts.
    """

    def __init__(self, monkeypatch, store, folder, count=2):
        self.store, self.count, self.said = store, count, []
        self._barrier, self._texts = threading.Barrier(count, timeout=20), [""] * count
        self._threads = ThreadPoolExecutor(count)
        self._monkeypatch, self._disks = monkeypatch, [folder / f"disk-{index}" for index in range(count)]
        self.folders = []

    def _gather(self, index):
        def gather(text):
            self._texts[index] = text
            self._barrier.wait()
            found = list(self._texts)
            self._barrier.wait()
            return found

        return gather

    def together(self, action):
        """Calls `action(index)` on all hosts at the same time; returns the results, or raises the first error."""
        return [one.result() for one in [self._threads.submit(action, index) for index in range(self.count)]]

    def start(self):
        """Starts a command on all hosts."""
        places = {}

        def place(address, kind, rank):
            index = places[threading.get_ident()]
            return self._disks[index] / kind / address.bucket / address.name

        def begin(index):
            places[threading.get_ident()] = index
            group = Group(index, self.count, self._gather(index))
            timing = Timing(beat=5, expiry=50)
            return HostFolder(self.store, "trains", group, say=self.said.append, lost=self.said.append, timing=timing)

        self._monkeypatch.setattr(host_folder, "local_place", place)
        self.folders = self.together(begin)
        return [folder.path for folder in self.folders]

    def kill(self):
        """Ends the command on all hosts as `kill -9` does."""
        for folder in self.folders:
            folder._stopped.set()
            folder._thread.join()
            folder._stack.close()

    def finish(self):
        """Ends the command on all hosts."""
        self.together(lambda index: self.folders[index].__exit__(None, None, None))

    def save(self, step, *, write=None, shards=None):
        """Writes a checkpoint on the hosts `write` (default: all), by default half of the shards each."""
        for index, folder in enumerate(self.folders):
            if write is not None and index not in write:
                continue
            held = shards or [range(0, 2), range(2, 4)]
            # Of a shard that several hold, the first publishes it.
            own = [shard for shard in held[index] if not any(shard in other for other in held[:index])]
            folder.record_share(step, [f"checkpoints/{step}/params/w/c/{shard}" for shard in own])
            checkpoint(folder.path, step, held[index])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()
        self._threads.shutdown()


def checkpoint(folder, step, shards):
    """Writes some shards of a checkpoint, and its other files."""
    place = f"checkpoints/{step}"
    grid = {"configuration": {"chunk_shape": [2]}}
    filled(folder, **{f"{place}/params/w/c/{shard}": f"{step} {shard}" for shard in shards})
    filled(folder, **{f"{place}/params/w/zarr.json": json.dumps({"shape": [2 * SHARDS], "chunk_grid": grid})})
    filled(folder, **{f"{place}/digests/metadata": json.dumps({"step": step})})


def names(step):
    """The files of a complete checkpoint."""
    shards = [f"params/w/c/{shard}" for shard in range(SHARDS)]
    return {f"checkpoints/{step}/{name}" for name in (*shards, "params/w/zarr.json", "digests/metadata")}
