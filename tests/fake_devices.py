"""Programs of the tests that run on several fake devices."""

import os
import subprocess
import sys
from pathlib import Path


def run_on_eight_devices(script: str) -> str:
    """Runs a program of this folder on eight fake CPU devices; returns what it prints."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
