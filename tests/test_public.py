"""The public interface: one list of names, documented with an example each, and cheap to import."""

import ast
import dataclasses
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest

import starflow_jax as sf
from starflow_jax.data import digits
from starflow_jax.evaluation import log_probs
from starflow_jax.sampling import class_labels
from starflow_jax.sampling import sample as sample_images

REPOSITORY = Path(__file__).resolve().parents[1]
API = REPOSITORY / "docs" / "reference" / "api.md"


def blocks(path: Path, end: str | None = None) -> str:
    """The ```python blocks of a document, before the heading `end`, as one module, each line where it is."""
    lines, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if end is not None and line == end:
            return "\n".join(lines)
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line.startswith("```python") or (inside and not fence)
    assert end is None, f"{path} has no heading {end!r}"
    return "\n".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the experiments."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "experiments").symlink_to(REPOSITORY / "experiments")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The run that the first examples of the page of the interface train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(blocks(API, "## Trained models"), API, "exec"), {"__name__": "examples"})
        return sf.from_pretrained("runs/digits")


@pytest.mark.slow
def test_examples_of_the_interface_run(tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "examples"}
    exec(compile(blocks(API), API, "exec"), names)
    assert names["run"].step == 10


def test_every_public_name_has_an_example():
    called = {
        node.attr
        for node in ast.walk(ast.parse(blocks(API)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sf"
    }
    assert called | {"Run"} >= set(sf.PUBLIC), sorted(set(sf.PUBLIC) - called)
    headings = " ".join(re.findall("^### (.*)$", API.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall("`([A-Za-z_]+)`", headings)) == set(sf.PUBLIC)
    documented = re.findall("^::: (.*)$", API.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(hasattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in documented)


def test_names_exist_and_are_listed():
    for name in sf.PUBLIC:
        assert getattr(sf, name).__doc__
        assert name in dir(sf)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = sf.nothing


def test_type_checkers_see_the_same_names():
    tree = ast.parse((REPOSITORY / "starflow_jax" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == sf.PUBLIC


def test_importing_the_package_imports_neither_jax_nor_numpy():
    program = (
        "import sys, time; begun = time.perf_counter(); import starflow_jax; print(time.perf_counter() - begun); "
        "print([name for name in ('jax', 'numpy', 'flax') if name in sys.modules])"
    )
    results = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split("\n")
        for _ in range(3)
    ]
    assert all(imported == "[]" for _, imported, _ in results)
    assert min(float(seconds) for seconds, _, _ in results) < 0.05


def test_samples_are_those_of_the_library(run):
    samples = sf.sample(run, num=12, seed=3)
    expected = sample_images(run.params, run.config, jax.random.key(3), class_labels(run.config, 12))
    np.testing.assert_array_equal(samples.images, expected.images)
    assert sf.sample(run, num=2, label=3).labels.tolist() == [3, 3]


def test_log_prob_is_that_of_the_flow(run):
    samples = sf.sample(run, num=5)
    expected = jax.jit(run.flow.log_prob)(samples.samples.noisy, samples.labels)
    np.testing.assert_allclose(sf.log_prob(run, samples), expected, rtol=1e-5)
    np.testing.assert_allclose(sf.log_prob(run.flow, samples.samples.noisy, samples.labels), expected, rtol=1e-5)


def test_bits_per_dim_are_those_of_evaluation(run):
    source = digits("test")
    some = dataclasses.replace(source, images=source.images[:6], labels=source.labels[:6])
    log_p = log_probs(run.params, run.config.flow, some, jax.random.key(5), draws=2)
    expected = (np.log(17 / 2) - log_p.mean(axis=0) / 64) / np.log(2)
    actual = sf.bits_per_dim(run, some.images, some.labels, draws=2, seed=5)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(sf.bits_per_dim(run.flow, some.images, some.labels, levels=17, draws=2, seed=5), actual)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: sf.sample(run, num=0), "num must be an integer >= 1, got 0"),
        (lambda run: sf.sample(run, captions="a seven"), "captions cannot be used with the run"),
        (lambda run: sf.sample(run, label=10), "class must be 0 to 9, got 10"),
        (lambda run: sf.sample(run, num=1, frames=3), "frames cannot be used with the run"),
        (lambda run: sf.log_prob(run, np.zeros((2, 8, 8, 1), np.uint8)), "x must be floating point"),
        (lambda run: sf.log_prob(run, np.zeros((2, 8, 8, 1)), [1]), "cond must be one for each of the 2 examples"),
        (
            lambda run: sf.bits_per_dim(run, np.full((2, 8, 8, 1), 17)),
            "images must contain values from 0 to 16, got 17",
        ),
        (lambda run: sf.from_pretrained("nowhere"), "contains no training run"),
    ],
)
def test_wrong_arguments_are_refused(run, call, message):
    with pytest.raises(ValueError, match=message):
        call(run)
