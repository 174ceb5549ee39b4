"""Damage to any file of a checkpoint is refused in one sentence, without tracebacks of background threads beside it."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from starflow_jax.training.checkpoints.late_reads import _Hook, silent_after_an_error


def test_errors_of_late_reads_alone_are_silent():
    passed_on = []
    hook = _Hook(passed_on.append)
    loop = asyncio.new_event_loop()
    loop.close()
    errors = [
        raised(lambda: loop.call_soon_threadsafe(print)),
        raised(lambda: loop.missing),
        ValueError("Event loop is closed"),
    ]
    for error in errors:
        hook(SimpleNamespace(exc_value=error, object=None))
    assert [unraisable.exc_value for unraisable in passed_on] == errors[1:]


def test_an_error_alone_leaves_the_hook(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", before := sys.__unraisablehook__)
    with silent_after_an_error():
        assert sys.unraisablehook is not before
    assert sys.unraisablehook is before
    for _ in range(2):  # once, however often a read fails
        with pytest.raises(KeyError), silent_after_an_error():
            raise KeyError
    assert sys.unraisablehook.other is before


def raised(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


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
