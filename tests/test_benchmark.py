"""The benchmark runs and writes its results as JSON; nothing is timed."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmarks" / "flow.py"


def test_the_quick_run_reports_every_pass(tmp_path):
    out = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--json", str(out)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    text = json.dumps(json.loads(out.read_text()))
    for name in ("forward", "forward+backward", "sequential", "sequential guided", "jacobi 16"):
        assert name in run.stdout
        assert name in text
