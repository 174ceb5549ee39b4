"""`starflow train-inverse`, and the samples of its network: verified ones are the sequential solver's."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, VIDEO, normal, random_flow

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.core.config.learned_inverse_config import InversePairsConfig, LearnedInverseConfig
from starflow_jax.data.pipeline.fingerprint import SourceFingerprint
from starflow_jax.experiments.benchmarks import start_errors
from starflow_jax.flows import LinearGuidance
from starflow_jax.flows.learned_inverse import LearnedInverse
from starflow_jax.sampling.loaded_run import open_run
from starflow_jax.sampling.model_folder import AssembleRequest, assemble
from starflow_jax.sampling.sample_requests import RunRequest, SampleRequest
from starflow_jax.sampling.sample_run import sample_run
from starflow_jax.solvers import OnePass
from starflow_jax.training import load_run, train
from starflow_jax.training.inverse import inverse_update
from starflow_jax.training.inverse import train_inverse as train_inverse_module
from starflow_jax.training.inverse.inverse_folder import has_inverse, load_inverse
from starflow_jax.training.inverse.inverse_setup import default_experiment
from starflow_jax.training.inverse.inverse_update import Pairs, alignment_loss
from starflow_jax.training.loop.metrics import read_metrics

TRAINED = Path(__file__).parent / "trained"
SMALL = [
    *(f"--config.network.{name}={value}" for name, value in (("width", 8), ("head_dim", 4), ("layers", 1))),
    *(f"--config.train.{name}={value}" for name, value in (("steps", 4), ("warmup", 0), ("batch_size", 4))),
    *("--config.train.log_every=1", "--config.train.checkpoint_every=2", "--config.train.keep=10"),
]
UNDRAWN = ["--config.pairs.sampled=0"]


def run_folder(path):
    """A run with a checkpoint, that of version 0.1."""
    with tarfile.open(TRAINED / "digits_run_0_1.tar.gz") as archive:
        archive.extractall(path, filter="data")
    return next(path.rglob("config.json")).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a learned inverse."""
    folder = run_folder(tmp_path_factory.mktemp("inverse"))
    figures = folder.parent / "figures.json"
    command = ["train-inverse", "--workdir", str(folder), "--quiet", "--json", str(figures), *SMALL, *UNDRAWN]
    assert main(command) == 0
    return folder


def test_the_training_leaves_its_records(run):
    figures = json.loads((run.parent / "figures.json").read_text())
    assert (figures["steps"], figures["flow_step"]) == (4, 4)
    rows = read_metrics(run / "inverse" / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["state_error"] > 0 and row["skipped"] == 0 for row in rows)
    inverse = load_inverse(run, load_run(run)[0])
    assert inverse.step == 4 and inverse.experiment.network.guided
    assert sum(leaf.size for leaf in jax.tree.leaves(inverse.params)) == figures["parameters"]


def test_verified_samples_are_those_of_the_sequential_solver(run):
    model, request = open_run(RunRequest(run)), SampleRequest(num=3, seed=3, guidance=1.0)
    exact = sample_run(model, dataclasses.replace(request, solver="sequential"))
    found = sample_run(model, dataclasses.replace(request, solver="verified"))
    np.testing.assert_allclose(found.samples.noisy, exact.samples.noisy, atol=5e-3)
    assert found.report.evaluations < exact.report.evaluations


def test_one_pass_says_what_it_draws(run):
    model, said = open_run(RunRequest(run)), []
    found = sample_run(model, SampleRequest(num=2, seed=3, guidance=0.0, solver="one-pass"), warn=said.append)
    assert np.isfinite(found.samples.noisy).all()
    assert said == [
        "the samples are estimates of the learned inverse; --solver verified draws those of the flow itself"
    ]
    with pytest.raises(ValueError, match=r"guidance must be at most 4 with solver 'one-pass', .* got 5"):
        sample_run(model, SampleRequest(num=2, guidance=5.0, solver=OnePass()), warn=said.append)


def test_info_describes_the_training(run, capsys):
    assert main(["info", "--workdir", str(run / "inverse")]) == 0
    printed = capsys.readouterr().out
    assert "learned inverse of step 4" in printed and "finished: step 4 of 4" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.network.width=7"], "network.head_dim must divide network.width, got 4 and 7"),
        (["--config.pairs.max_guidance=0"], "network.guided must be true where pairs.max_guidance is above 0"),
        (["--config.train.accumulate=2"], "train.accumulate must be 1 for a learned inverse, got 2"),
        (["--config.train.max_skipped=3"], "train.max_skipped must be 0 for a learned inverse, got 3"),
        (["--config.train.sample_every=3"], "train.sample_every must be 1000 for a learned inverse, got 3"),
        (["--step", "3"], "step must be one of the checkpoints in"),
        (["--config.network.widht=8"], "did you mean width"),
        (["--config.pairs.sampled=2"], "pairs.sampled must be"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(tmp_path, capsys, arguments, sentence):
    command = ["train-inverse", "--workdir", str(run_folder(tmp_path)), *SMALL, *UNDRAWN, *arguments]
    assert main(command) == 2
    assert sentence in capsys.readouterr().err


def test_a_run_without_a_learned_inverse_names_the_command(tmp_path, capsys):
    folder = run_folder(tmp_path)
    assert main(["sample", "--workdir", str(folder), "--solver", "verified", "--out", str(tmp_path / "s.png")]) == 2
    assert f"starflow train-inverse --workdir {folder} trains one" in capsys.readouterr().err
    assert main(["train-inverse", "--workdir", str(tmp_path / "gone")]) == 2
    assert "contains no training run" in capsys.readouterr().err


def test_the_loss_is_zero_for_the_flows_own_states():
    flow = random_flow(CLASSES)
    states = jax.jit(lambda flow, x: flow.forward(x, jnp.arange(4) % 3).tokens)(flow, normal((4, 4, 4, 1)))

    class Oracle(LearnedInverse):
        def __call__(self, noise, cond=None, weight=0.0, *, teacher=None, free_running=None):
            found = super().__call__(noise, cond, weight, teacher=teacher, free_running=free_running)
            return found.replace(states=teacher, clean=teacher[0])

    network = LearnedInverseConfig(width=8, head_dim=8)
    free_running = jnp.zeros(4, bool)
    pairs = Pairs(states, states[0])
    loss = jax.jit(lambda learned: alignment_loss(learned, pairs, None, 0.0, free_running, 6.0))
    assert float(loss(Oracle(CLASSES, network, jax.random.key(0)))[0]) == 0.0
    value, terms = loss(LearnedInverse(CLASSES, network, jax.random.key(0)))
    assert float(value) == pytest.approx(2 * float(terms["state_error"]) + float(terms["clean_error"]), rel=1e-6)
    assert float(value) > 0.1


def test_the_default_training_suits_the_run():
    config = load_run_config()
    experiment = default_experiment(config, 7)
    assert (experiment.network.width, experiment.flow_step) == (config.flow.width, 7)
    assert experiment.pairs == InversePairsConfig(max_guidance=4.0, sampled=0.5)
    assert experiment.train.skip_after is None  # a norm above the clip is clipped, not skipped
    unlabelled = load_config("experiments/digits.py:tiny", ["flow.num_classes=0", "data.label_drop=0"])
    assert default_experiment(unlabelled, 7).pairs == InversePairsConfig()


def load_run_config():
    return load_config("experiments/digits.py:tiny")


@pytest.mark.slow
def test_pairs_that_the_flow_draws_are_exact():
    flow = random_flow(VIDEO)
    config = load_run_config()
    objective = inverse_update.Objective(default_experiment(config, 0), config, 256, None)
    text = normal((2, 3, 6), 3)
    pairs = inverse_update._drawn(objective, flow, jax.random.key(1), (2, 3, 4, 4, 2), text, None)
    again = flow.forward(flow.data_of(pairs.states[0]), text).tokens
    for found, expected in zip(pairs.states, again, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)
    flow = random_flow(CLASSES)
    guidance, labels = LinearGuidance(1.0), jnp.asarray([0, 2])
    pairs = inverse_update._drawn(objective, flow, jax.random.key(1), (2, 4, 4, 1), labels, guidance)
    again = flow.forward(flow.data_of(pairs.states[0]), labels, guidance=guidance).tokens
    for found, expected in zip(pairs.states, again, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.slow
def test_a_training_goes_on_exactly_with_drawn_pairs(tmp_path):
    """Stopped after two of four updates, one of them on drawn pairs."""
    whole, parts = run_folder(tmp_path / "whole"), run_folder(tmp_path / "parts")
    for folder in (whole, parts):
        assert main(["train-inverse", "--workdir", str(folder), "--quiet", *SMALL]) == 0
    checkpoints = parts / "inverse" / "checkpoints"
    for path in checkpoints.iterdir():
        if path.name == "4":
            path.rename(tmp_path / "removed")
    assert main(["train-inverse", "--workdir", str(parts), "--quiet"]) == 0  # with the settings that are recorded
    config = load_run(whole)[0]
    one, other = (load_inverse(folder, config).params.params for folder in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_the_benchmark_compares_every_setting(run, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments" / "benchmarks"))
    import learned_inverse

    figures = tmp_path / "figures.json"
    assert learned_inverse.main(["--workdir", str(run), "--label", "3", "--quick", "--json", str(figures)]) == 0
    rows = {row["setting"]: row for row in json.loads(figures.read_text())["rows"]}
    assert rows["sequential"]["error"] == 0 and rows["verified"]["error"] < 1e-2 < rows["one-pass"]["error"]
    assert rows["verified"]["depth"] < rows["sequential"]["depth"] and rows["one-pass"]["depth"] == 2
    assert all(row["converged"] for row in rows.values())
    assert "sequential / this" in capsys.readouterr().out


@pytest.mark.slow
def test_samples_in_one_pass_are_judged_beside_exact_ones(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments" / "benchmarks"))
    import one_pass

    figures, clips = tmp_path / "figures.json", tmp_path / "clips"
    assert one_pass.main(["--workdir", str(run), "--quick", "--json", str(figures)]) == 0
    exact, fast = json.loads(figures.read_text())["rows"]
    assert exact["samples"] == fast["samples"] == 10 and exact["sequential_over_this"] == 1.0
    assert 0 <= fast["shares"]["class"]["mean"] <= 1
    train(load_config("experiments/moving_digits.py:tiny"), clips, progress=False)
    with pytest.raises(SystemExit):  # no learned inverse
        one_pass.main(["--workdir", str(clips), "--quick"])
    heads = ["--config.network.width=20", "--config.network.head_dim=20"]
    assert main(["train-inverse", "--workdir", str(clips), "--quiet", *SMALL, *heads, *UNDRAWN]) == 0
    assert one_pass.main(["--workdir", str(clips), "--quick", "--json", str(figures)]) == 0
    rows = json.loads(figures.read_text())["rows"]
    assert [row["samples"] for row in rows] == [2, 2]
    assert set(rows[1]["shares"]) == {"frames with the digit", "clips with the direction"}


def test_a_model_folder_keeps_the_learned_inverse(run, tmp_path):
    (tmp_path / "vae.npz").touch()
    (tmp_path / "t5").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "t5" / name).touch()
    folder = assemble(AssembleRequest(tmp_path / "model", run, tmp_path / "vae.npz", tmp_path / "t5"))
    config = load_run(run)[0]
    assert has_inverse(folder.flow) and not has_inverse(tmp_path)
    copied, own = (load_inverse(path, config).params.params for path in (folder.flow, run))
    jax.tree.map(np.testing.assert_array_equal, copied, own)


@pytest.mark.slow
def test_changed_data_are_refused(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    other = (SourceFingerprint("digits", 5, "other"),)
    monkeypatch.setattr(train_inverse_module, "fingerprint", lambda source: other)
    assert main(["train-inverse", "--workdir", str(folder), "--quiet"]) == 2
    assert "and contains 5 now" in capsys.readouterr().err


@pytest.mark.slow
def test_two_devices_train_what_one_does(tmp_path):
    losses = {}
    for devices in (1, 2):
        folder = run_folder(tmp_path / str(devices))
        command = [sys.executable, "-m", "starflow_jax", "train-inverse", "--workdir", str(folder), "--quiet", *SMALL]
        flags = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [*command, f"--config.mesh.data={devices}"], env=os.environ | {"XLA_FLAGS": flags}, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        losses[devices] = [row["loss"] for row in read_metrics(folder / "inverse" / "metrics.csv")]
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)


@pytest.mark.slow  # a program for every block and solver
def test_the_error_of_a_start_is_followed_to_the_solution(run, tmp_path, capsys):
    figures = tmp_path / "starts.json"
    assert start_errors.main(["--workdir", str(run), "--quick", "--guidance", "1", "--json", str(figures)]) == 0
    assert "within 1e-03 from" in capsys.readouterr().out
    rows = json.loads(figures.read_text())["rows"]
    assert {row["start"] for row in rows} == {"noise", "1e-01", "1e-02", "1e-03", "1e-04", "1e-05"}
    for row in rows:
        if row["start"] != "noise":
            assert row["errors"][0] == pytest.approx(float(row["start"]), rel=0.3)
        assert row["rounding"] < 1e-4 and row["iterations"] is not None
