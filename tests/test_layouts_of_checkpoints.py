"""A checkpoint of two processes is restored by one on any number of devices; processes stop together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "layouts_of_checkpoints.py"


def run(devices, *arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(SCRIPT.parent.parent)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(*processes):
    ended = [(process.communicate(timeout=120), process.returncode) for process in processes]
    assert all(code == 0 for _, code in ended), ended
    return [out for (out, _), _ in ended]


@pytest.mark.slow  # test_processes.py loads what two processes saved
def test_saved_by_two_processes_restored_by_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    first, second = outputs(*(run(2, "save", port, index, tmp_path / "run") for index in range(2)))
    assert "refused: invalid literal" in first and "refused: a number failed on the first process" in second
    # One process gets the signal before its third call; both see it with the fourth.
    assert "asked: 0 0 0 15 15 15" in first and "asked: 0 0 0 15 15 15" in second
    (restored,) = outputs(run(4, "restore", tmp_path / "run"))
    assert restored.splitlines() == ["restored over 1", "restored over 2", "restored over 4"]
