"""The solvers' benchmark runs and reports every solver; nothing is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmarks" / "solvers.py"


@pytest.mark.slow
def test_the_quick_run_reports_every_solver(tmp_path):
    out, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(out), "--plot", str(picture)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    result = json.loads(out.read_text())["models"]["tiny video"]
    lines = {line["solver"]: line for line in result["lines"]}
    assert lines["sequential"]["depth"] == 2 * 16 + 16 and lines["sequential"]["max_error"] == 0
    for name in ("jacobi, as released", "selective", "gs-jacobi", "sliding 64", "auto, time", "auto, depth"):
        assert name in run.stdout and lines[name]["within_target"] and lines[name]["max_error"] <= 1e-3
    assert lines["auto, depth"]["depth"] < lines["sequential"]["depth"]
    assert lines["auto, depth"]["pipelined_depth"] <= lines["auto, depth"]["depth"]
    assert "prefix commit" in run.stdout and picture.stat().st_size > 1000
