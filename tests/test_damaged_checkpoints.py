"""Damage to any file of a checkpoint is refused in one sentence, without tracebacks of background threads beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # test_checkpoint.py damages each kind of file once
def test_every_file_of_a_checkpoint(tmp_path):
    script = Path(__file__).parent / "damaged_checkpoints.py"
    subprocess.run(
        [sys.executable, str(script), str(tmp_path)], check=True, timeout=900, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    answers = json.loads((tmp_path / "answers.json").read_text())
    refused = [entry for entry in answers if entry[3] == 2]
    assert {entry[2] for entry in refused} == {"load", "restore", "sample", "train"}
    wrong = [entry for entry in answers if entry[3] not in (0, 2) or "Traceback" in entry[4]]
    wrong += [entry for entry in refused if len(entry[4].splitlines()) != 1]
    wrong += [entry for entry in answers if entry[3] == 0 and entry[4]]
    assert not wrong, "\n".join(map(str, wrong[:20]))
