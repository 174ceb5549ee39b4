"""A fake S3 server, and a proxy in front of it that drops connections; for `experiments/soak.py`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import selectors
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

BUCKET = "soak"
NEEDED = ("moto", "flask", "s3fs")


@contextlib.contextmanager
def object_server(folder: Path) -> Iterator[int]:
    """Runs a server of S3 with an empty bucket; yields its port.

    Raises:
      ValueError: the packages of the server are not installed, or it does not start.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} is not installed: pip install 'starflow_jax[s3,test-stores]'")
    port = free_port()
    with (folder / "server.txt").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment(port))
        try:
            _wait(port, process)
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
            urllib.request.urlopen(request, timeout=30).close()
            yield port
        finally:
            process.kill()
            process.wait()


def environment(port: int) -> dict[str, str]:
    """The variables that lead clients to a server on that port."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def free_port() -> int:
    """A port of the loopback address that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise ValueError("the server of S3 ended at once; its log is server.txt")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.1)
    raise ValueError("the server of S3 did not answer within a minute")


class FlakyProxy:
    """Passes connections on to a port, and drops some of them. A context manager.

    Attributes:
      port: to connect to; dropped: number of connections dropped so far.

    Args:
      target: port of the server; share: of connections dropped after a random number of bytes; seed: of the choice.
    """

    def __init__(self, target: int, share: float, seed: int):
        self._target, self._share, self._random = target, share, random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self.dropped = 0
        self._down_until = 0.0
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> FlakyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def refuse(self, seconds: float) -> None:
        """Drops every connection at once for so many seconds."""
        self._down_until = time.monotonic() + seconds

    def calm(self) -> None:
        """Drops no connection any more."""
        self._share, self._down_until = 0.0, 0.0

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            if time.monotonic() < self._down_until:
                self.dropped += 1
                client.close()
                continue
            limit = self._random.randrange(1, 20_000) if self._random.random() < self._share else None
            threading.Thread(target=self._pass_on, args=(client, limit), daemon=True).start()

    def _pass_on(self, client: socket.socket, limit: int | None) -> None:
        passed = 0
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target)) as server:
            pairs = {client: server, server: client}
            with selectors.DefaultSelector() as ready:
                for one in pairs:
                    ready.register(one, selectors.EVENT_READ)
                while True:
                    for key, _ in ready.select():
                        one = key.fileobj
                        assert isinstance(one, socket.socket)
                        data = one.recv(65536)
                        if not data:
                            return
                        passed += len(data)
                        if time.monotonic() < self._down_until or (limit is not None and passed > limit):
                            self.dropped += 1
                            return
                        pairs[one].sendall(data)
