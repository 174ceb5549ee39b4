"""The benchmark runs and writes its results as JSON; nothing is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmarks" / "flow.py"


@pytest.mark.parametrize(
    ("only", "passes"),
    [
        ("forward", ("forward",)),
        pytest.param(
            "", ("forward", "forward+backward", "sequential", "sequential guided", "jacobi 16"), marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.slow
def test_the_quick_run_reports_every_pass(only, passes, tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--only", only, "--json", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    text = json.dumps(json.loads(out.read_text()))
    for name in passes:
        assert name in run.stdout
        assert name in text
