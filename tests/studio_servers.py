"""Studios in processes of their own, and a visitor who speaks the protocol of the page."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid

import pytest

httpx = pytest.importorskip("httpx")
MOST_UPLOAD = 1  # MiB
SECONDS = 90  # that a result may take, compilation included


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(workdir, *options):
    """A studio of a run in a process of its own, and its address; it ends by an interrupt, without leaving a file."""
    temporary = workdir.parent / f"temporary-{uuid.uuid4().hex}"
    temporary.mkdir()
    command = [sys.executable, "-m", "starflow_jax", "studio", "--workdir", str(workdir), "--port", str(free_port())]
    process = subprocess.Popen(
        [*command, "--no-compilation-cache", "--max-upload", str(MOST_UPLOAD), *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("studio: http://127.0.0.1:"), line
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    assert not [path for path in temporary.iterdir() if path.name.startswith("starflow")]


class Client:
    """A visitor without a browser, who speaks the protocol of the page."""

    def __init__(self, address):
        self.address, self.session = address, uuid.uuid4().hex[:12]
        self.http = httpx.Client(base_url=address, timeout=SECONDS, trust_env=False)
        self.config = self.http.get("config").json()

    def function(self, name):
        """The index of what a click on the element of this name calls."""
        [component] = [one["id"] for one in self.config["components"] if one["props"].get("elem_id") == name]
        return next(
            one["id"] for one in self.config["dependencies"] if [component, "click"] in map(list, one["targets"])
        )

    def join(self, name, data):
        values = {"data": data, "fn_index": self.function(name), "session_hash": self.session}
        return self.http.post("gradio_api/queue/join", json=values)

    def last(self):
        """The messages until the end of the request; the last one."""
        with self.http.stream("GET", f"gradio_api/queue/data?session_hash={self.session}") as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] in ("process_completed", "unexpected_error"):
                        return message
        raise AssertionError("the stream ended before the request")
