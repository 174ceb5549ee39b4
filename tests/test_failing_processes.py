"""If one process of a run fails the others end too; if one is stopped, all stop at the same update."""

from pathlib import Path

import pytest
from joined_processes import run_joined

from starflow_jax.training import Checkpoints

SCRIPT = Path(__file__).parent / "process_that_fails.py"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment in which all processes share a compilation cache."""
    return {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def checkpoints(folder):
    return sorted(int(path.name) for path in (folder / "run" / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.slow
def test_sigterm_to_one_stops_all_at_the_same_update(tmp_path, environment):
    found = run_joined(SCRIPT, tmp_path, 2, "sigterm", "1", environment=environment)
    for code, printed, _ in found:
        assert code == 0, printed[-3000:]
    assert "stopped by SIGTERM at step 5 of 8" in found[0][1] and "SIGTERM" not in found[1][1]
    assert checkpoints(tmp_path)[-1] == 5
    with Checkpoints(tmp_path / "run") as saved:
        assert saved.latest_step() == 5


@pytest.mark.parametrize(
    ("fault", "victim", "code", "sentence"),
    [
        # The quick tests have test_sigterm_to_one_stops_all_at_the_same_update.
        pytest.param("loader", "1", 2, "data cannot be read: all was bad", marks=pytest.mark.slow),
        pytest.param("loader", "0", 2, "data cannot be read: all was bad", marks=pytest.mark.slow),
        pytest.param("disk", "1", 2, "could not be written (no space left on the disk)", marks=pytest.mark.slow),
        pytest.param("disk", "0", 2, "could not be written (no space left on the disk)", marks=pytest.mark.slow),
        pytest.param("data", "1", 2, "data file gone/train.npz does not exist", marks=pytest.mark.slow),
        pytest.param("data", "0", 2, "data file gone/train.npz does not exist", marks=pytest.mark.slow),
        pytest.param("bug", "1", 1, "RuntimeError: no such colour", marks=pytest.mark.slow),
    ],
)
def test_one_that_fails_ends_all_with_its_sentence(tmp_path, environment, fault, victim, code, sentence):
    found = run_joined(SCRIPT, tmp_path, 2, fault, victim, environment=environment)
    failed, other = found[int(victim)], found[1 - int(victim)]
    for ended in found:
        assert ended[0] == code, ended[1][-3000:]
    assert [line for line in failed[1].splitlines() if line.startswith("starflow: ")][-1].endswith(
        sentence + ("; earlier checkpoints are intact" if fault == "disk" else "")
    )
    lines = [line for line in other[1].splitlines() if line.startswith("starflow: ")]
    assert len(lines) == 1 and f"ended because process {victim} failed: " in lines[0] and sentence in lines[0]
    assert "Traceback" not in other[1] and abs(failed[2] - other[2]) < 60
