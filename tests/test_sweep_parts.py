"""The parts of a sweep: chunks on disk, contents of files, shuffled classes, names."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from starflow_jax.core.config import DataConfig
from starflow_jax.core.config.build import load_experiment
from starflow_jax.core.config.sweep_config import SweepConfig
from starflow_jax.core.request_errors import RequestError
from starflow_jax.sweeps.chunk_file import ChunkWriter, read_chunks
from starflow_jax.sweeps.content_hash import _part, model_hashes
from starflow_jax.sweeps.datasets import avoid_own_label, random_cycle
from starflow_jax.sweeps.sweep_request import run_names


def test_chunks_follow_one_another(tmp_path):
    path, values = tmp_path / "x.chunks", np.arange(12.0).reshape(6, 2)
    with ChunkWriter(path, 0) as writer:
        writer.append(0, values[:4], 0.5)
        writer.append(5, values[5:], 0.5)  # a gap
    found = read_chunks(path, 2)
    assert found.rows == 4 and found.seconds == 0.5 and found.incomplete > 0
    with ChunkWriter(path, found.size) as writer:
        writer.append(4, values[4:], 0.25)
    found = read_chunks(path, 2)
    np.testing.assert_array_equal(found.values, values)
    assert (found.seconds, found.chunks, found.incomplete) == (0.75, 2, 0)
    assert read_chunks(path, 3).rows == 0  # of another flow


def test_contents_of_files(tmp_path):
    model = tmp_path / "model"
    (model / "parts").mkdir(parents=True)
    (model / "parts" / "weights").write_bytes(b"one")
    known = {}
    first = model_hashes(str(model), known)
    assert model_hashes(str(model), {}) == first and model_hashes(f"{model}:0.6", {}) == ["0.6", *first[1:]]
    (model / "parts" / "weights").write_bytes(b"two")  # as long
    assert model_hashes(str(model), known) == first  # read once a plan
    assert model_hashes(str(model), {}) != first and model_hashes(None, {}) is None
    data = DataConfig(source="images", path=str(model))
    before = _part(data)
    assert _part(data) == before
    os.utime(model / "parts" / "weights", ns=(1, 1))
    assert _part(data) != before and _part(dataclasses.replace(data, flip=0.5)) == _part(data)


@pytest.mark.parametrize("labels", [np.arange(60) % 3, np.r_[np.zeros(30, int), np.arange(30) + 1]])
def test_no_example_is_given_its_own_class(labels):
    order = avoid_own_label(random_cycle(60, 3), labels, 3)
    assert sorted(order) == list(range(60)) and (labels[order] != labels).all() and (order != np.arange(60)).all()
    np.testing.assert_array_equal(order, avoid_own_label(random_cycle(60, 3), labels, 3))
    assert (order != avoid_own_label(random_cycle(60, 4), labels, 4)).any()


def test_a_class_of_most_examples_keeps_as_few_as_can_be():
    labels = np.r_[np.zeros(50, int), np.ones(10, int)]
    order = avoid_own_label(random_cycle(60, 0), labels, 0)
    assert (labels[order] == labels).sum() == 40 and (order != np.arange(60)).all()


def test_runs_of_one_name_are_told_apart():
    assert run_names(["a/digits", "b/digits", "b/other"]) == {
        "a/digits": "a/digits", "b/digits": "b/digits", "b/other": None
    }  # fmt: skip
    assert run_names(["runs/x"]) == {"runs/x": None}
    with pytest.raises(RequestError, match="workdir must name every run once, got a again"):
        run_names(["a", "a"])


@pytest.mark.parametrize("name", ["digits", "digits.py:tiny", "moving_digits"])
def test_shipped_sweeps_load(name):
    path = Path(__file__).parents[1] / "experiments" / "sweeps" / name
    load_experiment(SweepConfig, str(path) if ":" in name else f"{path}.py")
