"""Stores in memory that fail on demand: listings that lag, and calls that break."""

from __future__ import annotations

import json
import threading
import uuid

import fsspec

from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.lease import Timing
from starflow_jax.core.storage.manifest import LEASE, folder_files
from starflow_jax.core.storage.retries import Conflict, Retries
from starflow_jax.core.storage.store import Store

PATIENT = Retries(sleep=lambda seconds: None)


class Faulty:
    """The memory file system of fsspec, with faults.

    Attributes:
      lag: listings do not show what was written since this was set, and still show what was removed since.
      failures: how many of the next calls of each method fail; calls: how often each was called.
    """

    def __init__(self):
        self.inner = fsspec.filesystem("memory")
        self.failures: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self._shown: dict[str, dict] | None = None

    def freeze_listings(self, root: str):
        """From now on, listings show what is there now."""
        self._shown = self.inner.find(root, detail=True)

    def find(self, path, detail=True):
        self._count("find")
        if self._shown is None:
            return self.inner.find(path, detail=detail)
        prefix = path.rstrip("/") + "/"
        return {name: entry for name, entry in self._shown.items() if name.startswith(prefix)}

    def __getattr__(self, name):
        method = getattr(self.inner, name)
        if not callable(method) or name.startswith("_") or name == "invalidate_cache":
            return method

        def call(*args, **kwargs):
            self._count(name)
            return method(*args, **kwargs)

        return call

    def _count(self, name: str):
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.failures.get(name, 0) > 0:
            self.failures[name] -= 1
            raise ConnectionResetError("the connection broke")


def memory_store(name: str = "", files=None, retries: Retries = PATIENT) -> Store:
    """A store at a new address in memory."""
    address = Address.parse(f"memory://{name or uuid.uuid4().hex}/folder")
    return Store(address, Faulty() if files is None else files, retries)


def filled(folder, **texts):
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def contents(store):
    return {name: store.read(name).decode() for name in folder_files(store).files}


class Hours:
    """A clock that passes only while somebody sleeps."""

    def __init__(self, during=lambda: None):
        self.now, self.during = 0.0, during

    def sleep(self, seconds):
        self.now += seconds
        self.during()

    def timing(self):
        return Timing(beat=10, expiry=60, sleep=self.sleep, clock=lambda: self.now)


def foreign(store, **fields):
    """The lease of a process of another machine."""
    content = {"token": "t", "doing": "trains", "host": "h7", "pid": 12, "machine": "m", "start": "1", "beats": 0}
    store.write(LEASE, json.dumps(content | fields).encode())


class Renewed:
    """The files of a store whose lease is renewed by somebody else whenever it is looked at."""

    def __init__(self, store):
        self._store, self._beats = store, 0

    def info(self, path):
        if path.endswith(LEASE):
            self._beats += 1
            foreign(self._store, beats=self._beats)
        return self._store.files.info(path)

    def __getattr__(self, name):
        return getattr(self._store.files, name)


def race_to_write(store, count):
    """Lets threads write the same new object of a store at the same moment: one wins, and its content is there."""
    won = []

    def race(number):
        try:
            store.write_if("x", str(number).encode(), None)
            won.append(number)
        except Conflict:
            pass

    threads = [threading.Thread(target=race, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read("x") == str(won[0]).encode()
