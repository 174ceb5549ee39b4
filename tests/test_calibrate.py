"""Calibration: facts about a random flow, their file, and the command that measures them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import IMAGE, VIDEO, normal, random_flow

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import ExperimentConfig, build
from starflow_jax.core.config.learned_inverse_config import LearnedInverseConfig
from starflow_jax.flows.learned_inverse import LearnedInverse
from starflow_jax.flows.learned_parameters import LearnedParams
from starflow_jax.flows.parameters import split
from starflow_jax.solvers import Sequential, inverse
from starflow_jax.solvers.automatic.block_solver_choice import auto, choices
from starflow_jax.solvers.automatic.calibration import Calibration
from starflow_jax.solvers.automatic.solver_measurement import calibrate, fit_affine
from starflow_jax.training import Checkpoints, init_state
from starflow_jax.training.run_calibration import CALIBRATION_FILE, read_calibration, write_calibration

TEXT = normal((2, 3, 6), seed=1)
TARGET = 1e-3
CONFIG = build(
    ExperimentConfig,
    {
        "name": "tiny",
        "flow": {"family": "tarflow", "channels": 1, "image_size": 8, "patch_size": 4, "width": 16, "num_blocks": 2,
                 "layers_per_block": 1, "head_dim": 8, "num_classes": 10},
        "data": {"label_drop": 0.1},
        "train": {"steps": 8, "batch_size": 16, "lr": 1e-3},
        "sample": {"num": 3},
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def learned():
    """A learned inverse that was never trained."""
    network = LearnedInverseConfig(width=20, layers=1, head_dim=20)
    return LearnedParams(split(LearnedInverse(IMAGE, network, jax.random.key(0)))[1], network)


def calibrated(learned, batch, **options):
    """A random flow of 16 tokens and its calibration on so many samples."""
    flow = random_flow(IMAGE)
    x = 0.5 * normal((batch, 4, 4, 2))
    options = {"target_error": TARGET, "rounds": 1, "learned": learned, "inverse_step": 7, **options}
    return flow, calibrate(IMAGE, split(flow)[1], x, TEXT[:batch], **options)


@pytest.fixture(scope="module")
def still(learned):
    """On one sample, and with windows of the whole sequence alone: every window and batch is a program."""
    return calibrated(learned, 1, shares=())


@pytest.fixture(scope="module")
def thorough(learned):
    return calibrated(learned, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was never trained."""
    workdir = tmp_path_factory.mktemp("calibrated") / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(CONFIG)))
    with Checkpoints(workdir, CONFIG, write=True) as checkpoints:
        checkpoints.save(init_state(CONFIG), {}, wait=True)
    return workdir


@pytest.mark.slow
def test_trials_are_of_every_kind_and_keep_their_target(thorough):
    _, found = thorough
    assert [block.block for block in found.blocks] == [0, 1] and found.blocks[0].amplification == 1.0
    for block in found.blocks:
        assert block.tokens == 16 and block.sequential.depth == 16 and block.sequential.error < 1e-5
        methods = {trial.method for trial in block.trials}
        assert {method.solver for method in methods} == {"sequential", "jacobi", "sliding", "secant"}
        assert {m.start for m in methods if m.solver == "jacobi" and m.window == 16} == {"noise", "zero", "affine"}
        allowed = TARGET / 2 / block.amplification
        for solver in ("sequential", "jacobi", "sliding", "secant"):
            assert min(trial.error for trial in block.trials if trial.method.solver == solver) <= allowed
        # A tighter tolerance costs iterations and buys accuracy.
        for method in methods:
            own = sorted((t for t in block.trials if t.method == method), key=lambda t: -t.tolerance)
            assert [t.depth for t in own] == sorted(t.depth for t in own)
        assert all(cost.seconds > 0 for cost in block.costs) and {cost.batch for cost in block.costs} == {1, 2}


@pytest.mark.parametrize(
    ("calibration", "objective"),
    [
        ("still", "time"),
        *(pytest.param("thorough", objective, marks=pytest.mark.slow) for objective in ("time", "depth")),
    ],
)
def test_auto_gives_the_sequential_answer_to_the_target(calibration, learned, objective, request):
    flow, found = request.getfixturevalue(calibration)
    batch = found.samples
    z, text = normal((batch, 4, 4, 2), seed=5), TEXT[:batch]
    exact = jax.jit(lambda z: inverse(flow, z, text).x)(z)
    solver, network = auto(found, batch=batch, objective=objective), learned.module(IMAGE)
    solved = jax.jit(lambda z: inverse(flow, z, text, solver=solver, learned=network))(z)
    apart = jnp.sqrt(jnp.sum((solved.x - exact) ** 2, axis=(1, 2, 3)) / jnp.sum(exact**2, axis=(1, 2, 3)))
    assert float(apart.max()) <= 2 * TARGET  # other samples than those it was calibrated on
    assert int(solved.evaluations) <= 32
    if objective == "depth":
        assert int(solved.evaluations) < 32 and sum(c.trial.depth for c in choices(found, objective="depth")) < 32


def test_iterations_from_the_estimates_of_a_learned_inverse_are_tried(still):
    _, found = still
    assert found.inverse_step == 7
    for block in found.blocks:
        learned = [trial for trial in block.trials if trial.method.start == "learned"]
        assert {trial.method.solver for trial in learned} == {"sliding", "secant"}
        whole = [trial for trial in learned if trial.method.window == 16]
        assert min(trial.error for trial in whole) <= TARGET / 2 / block.amplification
        assert all(trial.depth >= 2 for trial in learned)  # the pass of the network, and an iteration at least


def test_the_affine_start_is_the_least_squares_fit():
    z = normal((3, 50, 2))
    x = jnp.asarray([1.0, -2.0]) + jnp.asarray([0.5, 3.0]) * z
    found = fit_affine(x, z)
    np.testing.assert_allclose([found.mean, found.scale], [[1.0, -2.0], [0.5, 3.0]], rtol=1e-5)


def test_blocks_that_run_inside_frames_are_calibrated_on_frames():
    config = dataclasses.replace(VIDEO, num_blocks=2, denoiser=None)
    flow = random_flow(config)
    x = 0.5 * normal((1, 2, 4, 4, 2))
    found = calibrate(config, split(flow)[1], x, TEXT[:1], rounds=1, shares=(), target_error=1e-2)
    assert [(block.tokens, block.sequential.depth) for block in found.blocks] == [(16, 16), (32, 32)]
    lags = [{trial.method.lags for trial in block.trials if trial.method.solver == "secant"} for block in found.blocks]
    assert lags == [{(1, 4)}, {(1, 4, 16)}]  # the token before, the one above, that of the last frame


def test_the_file_reads_back_as_it_was_written(still, tmp_path):
    _, found = still
    assert Calibration.from_json(found.to_json()) == found
    path = write_calibration(tmp_path, found)
    assert path.name == CALIBRATION_FILE and [p.name for p in tmp_path.iterdir()] == [CALIBRATION_FILE]
    config = dataclasses.replace(CONFIG, flow=IMAGE, data=CONFIG.data)
    assert read_calibration(tmp_path, config) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "null", "[1]", "{}", "\x00", "[" * 100_000, '{"step": NaN}', "__import__('os').abort()",
        '{"step": 1, "blocks": "rm -rf"}', '{"step": ' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_a_hostile_file_is_refused_in_one_sentence(tmp_path, text):
    (tmp_path / CALIBRATION_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"is not a calibration.*run starflow calibrate --workdir"):
        read_calibration(tmp_path, CONFIG)


def test_numbers_that_are_none_and_other_flows_are_refused(still, tmp_path):
    _, found = still
    values = json.loads(found.to_json())
    for name, value in [("seconds", float("nan")), ("error", -1.0), ("depth", 1.5), ("depth", "many")]:
        damaged = json.loads(found.to_json())
        damaged["blocks"][0]["trials"][0][name] = value
        with pytest.raises(ValueError, match=name):
            Calibration.from_json(json.dumps(damaged))
    with pytest.raises(ValueError, match="blocks must be different indices"):
        Calibration.from_json(json.dumps({**values, "blocks": []}))
    write_calibration(tmp_path, found)
    with pytest.raises(ValueError, match="of another flow; run starflow calibrate"):
        read_calibration(tmp_path, CONFIG)


def test_the_commands(run, tmp_path, capsys):
    sample = ["sample", "--workdir", str(run), "--solver", "auto", "--out", str(tmp_path / "x.npz")]
    assert main(sample) == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1 and f"run starflow calibrate --workdir {run}" in output
    assert main(["calibrate", "--workdir", str(run), "--samples", "1", "--batch", "3"]) == 0
    output = capsys.readouterr().out
    assert "CRM" in output and "auto, batch 3" in output and "written" in output
    assert read_calibration(run, CONFIG).samples == 1
    assert main([*sample, "--objective", "depth", "--json", str(tmp_path / "x.json")]) == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["converged"] and figures["solver"]["name"] == "perblock"
    # The flow is new, hence the identity: one look tells that the start is the answer.
    assert figures["evaluations"] <= 4


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--target-error", "1e-9"], "--target-error must be at least 1e-6, got 1e-09"),
        (["--target-error", "0"], "--target-error must be a finite number > 0"),
        (["--samples", "0"], "--samples must be an integer from 1 to 4096"),
        (["--workdir", "nowhere"], "workdir nowhere contains no training run"),
    ],
)
def test_what_calibrate_refuses(run, capsys, options, sentence):
    assert main(["calibrate", "--workdir", str(run), *options]) == 2
    output = capsys.readouterr().err
    assert output.startswith("starflow: ") and output.count("\n") == 1 and sentence in output


def test_sample_options_belong_to_their_solvers(run, capsys):
    base = ["sample", "--workdir", str(run), "--out", "x.png"]
    for options, sentence in [
        (["--objective", "depth"], "--objective is an option of --solver auto, got --solver sequential"),
        (
            ["--solver", "auto", "--tolerance", "1"],
            "--tolerance is an option of --solver gs-jacobi or jacobi or secant",
        ),
        (
            ["--solver", "sliding", "--modules", "2"],
            "--modules is an option of --solver gs-jacobi, got --solver sliding",
        ),
    ]:
        assert main([*base, *options]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.slow  # test_solver_names.py reaches solvers by their names
def test_every_named_solver_draws(still):
    from starflow_jax.solvers import named_solver

    flow, _ = still
    z = normal((1, 4, 4, 2), seed=5)
    exact = inverse(flow, z, TEXT[:1], solver=Sequential()).x
    for name in ("sliding", "gs-jacobi"):
        solved = inverse(flow, z, TEXT[:1], solver=named_solver(name, IMAGE))
        np.testing.assert_allclose(solved.x, exact, atol=5e-3)
    with pytest.raises(ValueError, match="'auto' needs a calibration"):
        named_solver("auto", IMAGE)
