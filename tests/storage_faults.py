"""Stores in memory that fail on demand: listings that lag, and calls that break."""

from __future__ import annotations

import uuid

import fsspec

from starflow_jax.core.storage.addresses import Address
from starflow_jax.core.storage.retries import Retries
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
