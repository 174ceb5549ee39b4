"""A solver is one file: it registers itself, and the configuration and the command line take its name."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import SampleConfig, load_config
from starflow_jax.core.registries import SOLVERS
from starflow_jax.solvers import Sequential
from starflow_jax.solvers.named import accepted_flags

# The user's file: an experiment that brings its own solver.
EXPERIMENT = """
import dataclasses
from ml_collections import ConfigDict
from starflow_jax.core.registries import SOLVERS
from starflow_jax.solvers import Jacobi

@SOLVERS.register("patient")
@dataclasses.dataclass(frozen=True)
class Patient(Jacobi):
    tolerance: float = 0.0
    max_iterations: int = 64

def get_config():
    return ConfigDict({
        "name": "tiny",
        "flow": {"family": "tarflow", "channels": 1, "image_size": 8, "patch_size": 4, "width": 16, "num_blocks": 2,
                 "layers_per_block": 1, "head_dim": 8, "num_classes": 10},
        "data": {},
        "train": {"steps": 2, "batch_size": 4, "lr": 1e-3, "steps_per_call": 2, "log_every": 2, "sample_every": 2},
        "sample": {"solver": "patient"},
    })
"""


pytestmark = pytest.mark.usefixtures("temporary_registrations")


@pytest.mark.slow
def test_a_solver_of_an_experiment_file_is_reached_by_configuration_and_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    assert main(["train", "--config", "tiny.py", "--workdir", "run", "--quiet"]) == 0
    sample = ["sample", "--workdir", "run", "--num", "2", "--class", "1", "--json", "x.json", "--out", "x.npz"]
    assert main(sample) == 0
    of_config = json.loads((tmp_path / "x.json").read_text())["solver"]
    assert (of_config["name"], of_config["max_iterations"]) == ("patient", 64)
    assert main([*sample, "--solver", "patient", "--max-iterations", "3"]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["solver"]["max_iterations"] == 3

    # A process that did not import the file can use the run with another solver, and refuses this one by name.
    monkeypatch.delitem(SOLVERS._entries, "patient")
    assert main([*sample, "--solver", "sequential"]) == 0
    assert main(sample) == 2
    assert "got 'patient'" in capsys.readouterr().err


def test_an_unknown_solver_is_refused_by_name():
    config = load_config(str(Path(__file__).parents[1] / "experiments" / "digits.py") + ":tiny")
    with pytest.raises(ValueError, match=r"solver must be one of 'auto', .*, got 'jacoby' \(did you mean 'jacobi'\?\)"):
        dataclasses.replace(config, sample=SampleConfig(solver="jacoby"))


def test_flags_are_those_of_the_registration_or_the_parameters():
    SOLVERS.register("plain")(Sequential)
    assert accepted_flags("plain") == {}
    assert accepted_flags("sliding") == {"block": "window", "tolerance": "tolerance"}


def test_help_does_not_import_jax():
    code = (
        "import sys; from starflow_jax.cli.dispatch import main\ntry: main(['sample', '--help'])\nexcept SystemExit: "
    )
    code += "pass\nassert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sequential, sliding or verified" in " ".join(done.stdout.split())
