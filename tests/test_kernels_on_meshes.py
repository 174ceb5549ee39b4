"""Kernels over a mesh, each device with its heads and samples, give the results of one device."""

import json

import pytest
from fake_devices import run_on_eight_devices


@pytest.mark.slow
def test_eight_devices_give_what_one_does():
    errors = json.loads(run_on_eight_devices("kernels_on_eight_devices.py"))
    assert 0 < errors["attention"] < 1e-4 and errors["update"] < 1e-5
    assert 0 <= errors["packed"] < 1e-4
    for name, (error, moved) in errors["divided"].items():
        assert error < (2e-2 if name == "bfloat16" else 1e-5)
        # One exchange along the sequence axis merges the outputs.
        assert moved == [["all-to-all" if name in ("12", "bfloat16") else "all-gather", 4]], name
    # [B, n, h, d]: half of the samples, and a quarter of the heads; of two kv heads, over one axis of two.
    assert errors["cudnn"] == [["2x6x2x16xbf16"], ["1x6x4x16xbf16"]]
