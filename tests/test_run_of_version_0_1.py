"""A run that version 0.1 wrote is sampled, evaluated and resumed by the present version.

`tests/trained/README.md` says how the run was made and what was recorded beside it.
"""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.training import load_run
from starflow_jax.training.loop.metrics import read_metrics

FOLDER = Path(__file__).parent / "trained"
CONFIG = str(Path(__file__).parents[1] / "experiments" / "digits.py") + ":tiny"


@pytest.fixture(scope="module")
def recorded():
    with np.load(FOLDER / "digits_run_0_1.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def workdir(tmp_path):
    with tarfile.open(FOLDER / "digits_run_0_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "digits"


def test_it_is_sampled(workdir, recorded, tmp_path):
    out = tmp_path / "samples.npz"
    argv = ["sample", "--workdir", workdir, "--num", "3", "--seed", "3", "--solver", "sequential", "--out", out]
    assert main([str(word) for word in argv]) == 0
    with np.load(out) as samples:
        np.testing.assert_array_equal(samples["label"], recorded["label"])
        np.testing.assert_allclose(samples["x"], recorded["x"], atol=1e-5)


def test_it_is_evaluated(workdir, tmp_path):
    out = tmp_path / "scores.json"
    assert main(["evaluate", "--workdir", str(workdir), "--draws", "1", "--json", str(out)]) == 0
    scores = json.loads(out.read_text(encoding="utf-8"))
    assert scores["step"] == 4
    assert scores["bits_per_dim"]["mean"] == pytest.approx(4.6914635724756595, abs=1e-5)
    assert scores["accuracy"]["correct"] == 33


def test_it_is_resumed(workdir, recorded):
    train = {"steps": 8, "checkpoint_every": 4, "log_every": 1}
    overrides = [f"--config.train.{name}={value}" for name, value in train.items()]
    assert main(["train", "--config", CONFIG, "--workdir", str(workdir), "--quiet", *overrides]) == 0
    _, _, params, step = load_run(workdir, ema=False)
    assert step == 8
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    assert len(leaves) == sum(name.startswith("params/") for name in recorded)
    # Adam divides by the size of a gradient, so rounding moves single weights. A lost moment or another batch moves
    # all of them, by about half of the updates since the checkpoint.
    pairs = [
        (np.asarray(value), recorded["params/" + "/".join(str(getattr(key, "key", key)) for key in path)])
        for path, value in leaves
    ]
    distance = np.sqrt(sum(np.sum((value - expected) ** 2) for value, expected in pairs))
    size = np.sqrt(sum(np.sum(expected**2) for _, expected in pairs))
    assert distance < 2e-3 * size, distance / size
    losses = [float(row["loss"]) for row in read_metrics(workdir / "metrics.csv")]
    assert losses[-4:] == pytest.approx([0.1588238, 0.09501385, 0.002925497, -0.002025616], abs=1e-4)
