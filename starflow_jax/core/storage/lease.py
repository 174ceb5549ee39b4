"""Ownership of an address by one process: an object with a heartbeat, which nobody else overwrites while it beats.

A lease is taken by writing the object if it is absent, or still of the version that was seen. An owner renews it every
`BEAT_SECONDS`. It is free where it was released, where its owner was a process of this machine that has ended, and
where its version has not changed for `EXPIRY_SECONDS` of the observer's own clock; no clocks are compared. An owner
that cannot renew it stops writing before anybody else may take it.

Where the store has no preconditions (`Store.compares_versions`), two processes that take a free lease at the same
moment can both believe that they own it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from starflow_jax.core.regular_files import parse_json
from starflow_jax.core.storage.manifest import LEASE
from starflow_jax.core.storage.retries import Conflict, Retries, StoreError
from starflow_jax.core.storage.store import Store

BEAT_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
_STOP_SHARE = 0.7  # of the expiry: an owner that has not renewed the lease for so long stops


class InUse(ValueError):
    """Another process owns the address."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """When a lease is renewed, and when it is taken from an owner that is silent.

    Attributes:
      beat: seconds between renewals; expiry: seconds without one after which it is free.
      sleep, clock: wait and measure; tests replace them.
    """

    beat: float = BEAT_SECONDS
    expiry: float = EXPIRY_SECONDS
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


class Lease:
    """The lease of an address, held until `release`.

    Args:
      store: of the address; doing: what this process does there, for the sentence that another one prints.
      lost: called once, from another thread, when the lease could not be renewed.
      wait: called with a sentence before the lease of a silent owner is watched.

    Raises:
      InUse: another process owns it. StoreError: the store cannot be read or written.
    """

    def __init__(
        self,
        store: Store,
        doing: str,
        *,
        timing: Timing | None = None,
        lost: Callable[[str], None] = lambda sentence: None,
        wait: Callable[[str], None] = lambda sentence: None,
    ):
        self._store, self._timing, self._lost = store, timing or Timing(), lost
        self._owner = {"token": uuid.uuid4().hex, "doing": doing, **_this_process()}
        self._beats, self._problem, self._ending = 0, "", threading.Lock()
        self._version = self._taken(wait)
        self._renewed = self._timing.clock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease of {store.address}", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """What names this owner in the object, and no other one."""
        return str(self._owner["token"])

    def check(self) -> None:
        """Raises StoreError where this process may no longer write."""
        if not self._problem and self._timing.clock() - self._renewed > _STOP_SHARE * self._timing.expiry:
            self._end("the store did not answer")
        if self._problem:
            raise StoreError(self._problem)

    def release(self) -> None:
        """Gives the address up, so that others may take it at once."""
        self._stopped.set()
        self._thread.join()
        if not self._problem:
            with contextlib.suppress(StoreError, Conflict, FileNotFoundError):
                facts = self._store.facts(LEASE)
                if facts is not None and facts.version == self._version:
                    self._store.remove(LEASE)

    def _taken(self, wait: Callable[[str], None]) -> str:
        """Writes the lease; returns its version."""
        content, version = self._read()
        if version is not None and not _has_ended(content):
            self._watch(content, version, wait)
        try:
            return self._store.write_if(LEASE, self._content(), version)
        except Conflict as error:
            raise InUse(_sentence(self._store, self._read()[0])) from error

    def _watch(self, content: dict[str, Any], version: str, wait: Callable[[str], None]) -> None:
        """Returns when a lease has not been renewed for its expiry; raises InUse when it is renewed."""
        timing = self._timing
        start = timing.clock()
        told = False
        while timing.clock() - start < timing.expiry:
            timing.sleep(min(timing.beat / 2, timing.expiry))
            now, seen = self._read()
            if seen is None:
                return
            if seen != version:
                raise InUse(_sentence(self._store, now))
            if not told and timing.clock() - start > 1.5 * timing.beat:
                told = True
                wait(f"{_sentence(self._store, content)}; waiting whether it still runs, {timing.expiry:g} s at most")

    def _read(self, store: Store | None = None) -> tuple[dict[str, Any], str | None]:
        """The content and the version of the lease; ({}, None) where there is none."""
        store = store or self._store
        facts = store.facts(LEASE)
        if facts is None:
            return {}, None
        try:
            content = parse_json(store.read(LEASE, 0, 2**16))
        except FileNotFoundError:
            return {}, None
        except (ValueError, RecursionError):
            content = {}
        return content if isinstance(content, dict) else {}, facts.version

    def _content(self) -> bytes:
        return json.dumps({**self._owner, "beats": self._beats}).encode()

    def _beat(self) -> None:
        # One attempt at a time: a renewal that fails is repeated at the next beat.
        store = dataclasses.replace(self._store, retries=Retries(attempts=1))
        pause = self._timing.beat
        while not self._stopped.wait(pause):
            self._beats += 1
            try:
                self._version = store.write_if(LEASE, self._content(), self._version)
                self._renewed, pause = self._timing.clock(), self._timing.beat
                continue
            except Conflict:
                token, version = self._token(store)
            except (StoreError, FileNotFoundError):
                token, version = None, ""
            if token == self._owner["token"]:  # the answer to an earlier renewal was lost
                self._version, pause = version, self._timing.beat / 10
            elif token is not None:
                self._end("another process has taken it")
                return
            else:
                pause = self._timing.beat / 4
            if self._timing.clock() - self._renewed > _STOP_SHARE * self._timing.expiry:
                self._end("the store did not answer")
                return

    def _token(self, store: Store) -> tuple[Any, str]:
        """The token of the owner and the version of the lease; None for a lease that cannot be read or is not there."""
        try:
            content, version = self._read(store)
        except (StoreError, FileNotFoundError):
            return None, ""
        return content.get("token"), version or ""

    def _end(self, why: str) -> None:
        with self._ending:  # several threads check
            if self._problem:
                return
            self._problem = f"{self._store.address} is no longer owned by this process: {why}; nothing more is written"
        self._lost(self._problem)


def _this_process() -> dict[str, Any]:
    """Names this process so that another one of the same machine can tell whether it still runs."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": _started(os.getpid()), "machine": machine()}


def machine() -> str:
    """Names the running system and its name space of processes, in which a process id means the same process."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the units of the kernel; "" for one that does not run."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _has_ended(content: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    pid, start, where = content.get("pid"), content.get("start"), content.get("machine")
    if not where or where != machine() or not isinstance(pid, int):
        return False
    return _started(pid) != start


def _sentence(store: Store, content: dict[str, Any]) -> str:
    who = f"process {content.get('pid', '?')} on {content.get('host', '?')}" if content else "another process"
    return f"{store.address} is in use by {who}, which {content.get('doing', 'works')} in it"
