"""Kernels over a mesh, each device with its heads and samples, give the results of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_eight_devices_give_what_one_does():
    script = Path(__file__).parent / "kernels_on_eight_devices.py"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    errors = json.loads(run.stdout)
    assert 0 < errors["attention"] < 1e-4 and errors["update"] < 1e-5
    for name, (error, moved) in errors["divided"].items():
        assert error < (2e-2 if name == "bfloat16" else 1e-5)
        # One exchange along the sequence axis merges the outputs.
        assert moved == [["all-to-all" if name in ("12", "bfloat16") else "all-gather", 4]], name
    # [B, n, h, d]: half of the samples, and a quarter of the heads; of two kv heads, over one axis of two.
    assert errors["cudnn"] == [["2x6x2x16xbf16"], ["1x6x4x16xbf16"]]
