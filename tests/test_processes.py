"""Several processes that train, save, score and sample together get the results of one process."""

import csv
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from joined_processes import run_joined
from several_processes import train_and_score

from starflow_jax.training.checkpoints.run_loading import load_run

SCRIPT = Path(__file__).parent / "several_processes.py"


def run_together(folder, count, devices, *overrides):
    """Runs `several_processes.py` on so many processes of so many fake devices each; returns what they printed."""
    found = run_joined(SCRIPT, folder, count, *overrides, devices=devices)
    for code, printed, _ in found:
        assert code == 0, printed[-3000:]
    return [printed for _, printed, _ in found]


def figures(folder):
    """The results of a run: losses, parameters, scores, and where there are any samples and their quality."""
    with (folder / "run" / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]
    params = load_run(folder / "run")[2]
    drawn = None
    if (folder / "samples.npz").exists():
        with np.load(folder / "samples.npz") as samples:
            drawn = samples["x"]
    scores = json.loads((folder / "evaluate.json").read_text())
    quality = folder / "quality.json"
    return losses, params, scores, drawn, json.loads(quality.read_text())["rows"][0] if quality.exists() else None


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run_together(folder, 1, 1)
    return figures(folder)


@pytest.fixture(scope="module")
def measured_alone(tmp_path_factory):
    """As `alone`, with samples and their quality."""
    folder = tmp_path_factory.mktemp("measured")
    run_together(folder, 1, 1, "--samples", "--quality")
    return figures(folder)


def assert_same(found, expected):
    losses, params, scores, drawn, quality = found
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    # As one vector: Adam turns gradients of pure rounding error, such as of the bias of keys, into full steps.
    ours, theirs = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (params, expected[1])
    )
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)
    assert scores["bits_per_dim"]["mean"] == pytest.approx(expected[2]["bits_per_dim"]["mean"], rel=1e-5)
    assert (drawn is None) == (expected[3] is None)
    if drawn is not None:
        np.testing.assert_allclose(drawn, expected[3], atol=1e-3)
    assert (quality is None) == (expected[4] is None)
    if quality is not None:
        assert quality["samples"] == 24 and quality["fid"] == pytest.approx(expected[4]["fid"], rel=1e-2)


# One block, trained for three updates: programs of several devices in several processes take long to compile.
SMALL = ("--config.flow.num_blocks=1", "--config.train.steps=3", "--config.train.warmup=1", "--config.sample.num=2")


def test_two_processes_of_one_device(tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    printed = run_together(together, 2, 1, *SMALL, "--config.mesh.data=1", "--config.mesh.fsdp=2")
    assert train_and_score(alone, SMALL) == 0
    assert_same(figures(together), figures(alone))
    assert "bits/dim" in printed[0] and "bits/dim" not in printed[1]  # only the first process prints


@pytest.mark.slow
def test_two_processes(alone, tmp_path):
    printed = run_together(tmp_path, 2, 2, "--config.mesh.fsdp=2")
    assert_same(figures(tmp_path), alone)
    assert "bits/dim" in printed[0] and "bits/dim" not in printed[1]  # only the first process prints


@pytest.mark.slow
def test_a_slice_in_each_of_two_processes(alone, tmp_path):
    run_together(tmp_path, 2, 2, "--config.mesh.slices=2", "--config.mesh.data=1", "--config.mesh.fsdp=2")
    assert_same(figures(tmp_path), alone)


@pytest.mark.slow
def test_four_processes_on_a_mesh_that_crosses_them(measured_alone, tmp_path):
    run_together(tmp_path, 4, 1, "--samples", "--quality", "--config.mesh.fsdp=4", "--config.mesh.data=1")
    assert_same(figures(tmp_path), measured_alone)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_another_mesh(alone, tmp_path):
    run_together(tmp_path, 2, 1, "--config.mesh.data=2")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")  # as if the run had stopped at step 3
    run_together(tmp_path, 4, 1, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    assert_same(figures(tmp_path), alone)
