"""Post-training: exact gradients and losses, the bound of the KL, exact resumption, a run that every command reads."""

import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_flows import CLASSES, random_flow
from sweep_runs import TRAIN, params_of, write_run

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig, ExperimentConfig
from starflow_jax.core.config.post_training_config import PostTrainingExperiment
from starflow_jax.post_training import policy_update, post_train, step_batches
from starflow_jax.post_training.objectives import advantages, clipped_surrogate, preference_loss, ranked_pairs
from starflow_jax.post_training.post_training_setup import PostTrainingSetup, check_base
from starflow_jax.reports import configuration
from starflow_jax.training import load_run
from starflow_jax.training.checkpoints.post_training_record import read_post_training
from starflow_jax.training.loop.metrics import read_metrics

FLOW = dataclasses.replace(CLASSES, num_blocks=1)
REWARDS = """
import numpy as np


def brightness(samples):
    return samples.pixels.reshape(len(samples.pixels), -1).mean(axis=1) / 255


def shapeless(samples):
    return np.zeros(3)


def failing(samples):
    raise KeyError("no key")
"""
SMALL = [
    *(f"--config.train.{name}={value}" for name, value in (("steps", 4), ("batch_size", 8), ("warmup", 0))),
    *("--config.train.log_every=1", "--config.train.checkpoint_every=2", "--config.train.keep=10"),
    *("--config.train.lr=1e-3", "--config.group_size=4", "--class", "all", "--quiet"),
]
BOUND = ["--kl-bound", "1000"]
PREFERENCES = ["--method", "dpo", "--config.preference.beta=200"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a base run, a file of rewards, and a post-trained run."""
    home = tmp_path_factory.mktemp("home")
    write_run(home / "base", FLOW, DataConfig(label_drop=0.1, levels=17), {4: params_of(random_flow(FLOW))})
    (home / "rewards.py").write_text(REWARDS)
    assert trained(home, "bright", "--json", str(home / "bright.json"), *BOUND) == 0
    return home


def trained(home: Path, out: str, *options: str, reward: str = "rewards.py:brightness") -> int:
    """The exit code of a training on a reward of the file."""
    named = ["--reward", str(home / reward) if reward.startswith("rewards.py") else reward] if reward else []
    return main(["post-train", "--workdir", str(home / "base"), "--out", str(home / out), *named, *SMALL, *options])


def parameters(folder: Path):
    return load_run(folder)[2]


def same(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def normal_log_p(mean, log_scale, x):
    z = (x - mean) / jnp.exp(log_scale)
    return -0.5 * z**2 - log_scale - 0.5 * math.log(2 * math.pi)


def test_the_gradient_is_that_of_the_reward_minus_the_kl():
    """Of an affine Gaussian flow, whose expected reward x and KL to N(0, 1) have derivatives in closed form."""
    mean, log_scale, beta, count = 0.4, -0.3, 0.7, 400_000
    x = mean + math.exp(log_scale) * np.random.default_rng(0).normal(size=count)
    log_p, log_ref = (np.asarray(normal_log_p(*at, x)) for at in ((mean, log_scale), (0.0, 0.0)))
    weight = advantages(x, log_p - log_ref, group_size=count, beta=beta, scale="centred")

    def loss(point):
        return clipped_surrogate(normal_log_p(*point, x), log_p, weight, 0.2).loss

    found = jax.grad(loss)((mean, log_scale))
    # d/dmean (E x - beta KL) and d/dlog_scale, KL = (scale^2 + mean^2 - 1) / 2 - log_scale
    expected = (1.0 - beta * mean, -beta * (math.exp(2 * log_scale) - 1.0))
    np.testing.assert_allclose([-float(g) for g in found], expected, atol=8e-3)


def test_groups_have_baselines_and_scales_of_their_own():
    reward, none = np.array([1.0, 3.0, 10.0, 10.0]), np.zeros(4)
    centred = advantages(reward, none, group_size=2, beta=1.0, scale="centred")
    np.testing.assert_allclose(centred, [-2, 2, 0, 0])  # what a sample is better than the other one
    standardised = advantages(100 * reward, none, group_size=2, beta=1.0, scale="standardised")
    np.testing.assert_allclose(standardised, [-2, 2, 0, 0])
    np.testing.assert_allclose(advantages(none, reward, group_size=2, beta=0.5, scale="standardised"), [1, -1, 0, 0])


def test_ratios_beyond_the_clip_have_no_gradient():
    ratios = jnp.asarray([1.1, 1.5, 0.5, 1.5, 0.5, 0.5])
    advantage = jnp.asarray([1.0, 1.0, -1.0, -1.0, 1.0, 0.0])

    def loss(log_p):
        return clipped_surrogate(log_p, jnp.zeros(6), advantage, 0.2)

    gradient = jax.grad(lambda log_p: loss(log_p).loss)(jnp.log(ratios))
    np.testing.assert_allclose(gradient, -jnp.asarray([1.1, 0, 0, -1.5, 0.5, 0]) / 6, rtol=1e-6)
    assert float(loss(jnp.log(ratios)).clipped) == pytest.approx(2 / 6)


def test_the_ratios_of_one_update_are_one():
    """Whatever another program found for the log-likelihoods of the samples."""
    train = dataclasses.replace(TRAIN, batch_size=8, accumulate=2)
    config = ExperimentConfig("ratios", FLOW, DataConfig(label_drop=0.1), train)
    x, advantage = jnp.linspace(0, 1, 8, dtype=jnp.bfloat16), jnp.linspace(-1, 2, 8)
    objective = policy_update.Objective(config, 1e-5, 1, 2, 1.0, None)

    def loss(scale):
        batch = policy_update.PolicyBatch(x, None, advantage)
        return policy_update._loss(objective, lambda x, cond: (scale * x).astype(jnp.float32), batch)

    (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.bfloat16(100.0))
    assert float(value) == pytest.approx(-0.25) and float(terms["clipped"]) == 0.0
    assert float(gradient) == pytest.approx(-float(jnp.mean(advantage * x)) / 2, rel=0.02)
    # Where several updates read the samples: of every sample, in the order of the samples.
    drawn = policy_update._drawn_log_p(objective, lambda x, cond: 3 * x, policy_update.PolicyBatch(x, None, advantage))
    np.testing.assert_array_equal(drawn, 3 * x)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_the_ratios_of_samples_that_were_just_drawn_are_one_in_bfloat16(parts):
    flow = dataclasses.replace(FLOW, dtype="bfloat16")
    train = dataclasses.replace(TRAIN, batch_size=8, lr=1e-9, min_lr=0.0, warmup=0)
    config = ExperimentConfig("bfloat16", flow, DataConfig(label_drop=0.1), train)
    params = params_of(random_flow(flow))
    state = policy_update.initial_state(
        PostTrainingExperiment("bfloat16", train, 0, reward="digit", group_size=8), params
    )
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype(np.float32)
    batch = policy_update.PolicyBatch(x, np.arange(8, dtype=np.int32) % 3, np.linspace(-1, 2, 8, dtype=np.float32))
    objective = policy_update.Objective(config, 1e-5, 1, parts, 1.0, None)
    metrics = policy_update.update(objective, state, batch)[1]
    assert float(metrics["loss"]) == pytest.approx(-0.5, rel=1e-5)
    assert float(metrics["clipped"]) == 0.0 and float(metrics["grad_norm"]) > 0


def test_the_loss_of_preferences_is_the_formula():
    winner, loser, weight = jnp.asarray([3.0, -1.0]), jnp.asarray([1.0, 1.0]), jnp.asarray([0.5, 0.5])
    found = preference_loss(winner, loser, weight, beta=8.0, dims=4)
    expected = -0.5 * (math.log(1 / (1 + math.exp(-4))) + math.log(1 / (1 + math.exp(4))))
    assert float(found.loss) == pytest.approx(expected, rel=1e-5) and float(found.accuracy) == 0.5


def test_pairs_are_ranked_within_groups():
    found = ranked_pairs(np.array([1.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 7.0]), 4)
    assert found.winners.tolist() == [1, 2, 7, 4] and found.losers.tolist() == [0, 3, 6, 5]
    np.testing.assert_allclose(found.weight, [1 / 3, 1 / 3, 1 / 3, 0])


def test_the_run_is_recorded_and_other_commands_read_it(home, capsys):
    figures = json.loads((home / "bright.json").read_text())
    assert (figures["step"], figures["ending"]) == (4, "steps")
    assert figures["first"]["kl"] == 0 and figures["last"]["kl"] != 0
    rows = read_metrics(home / "bright" / "metrics.csv")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["skipped"] == 0 and row["clipped"] == 0 for row in rows[1:])
    assert read_post_training(home / "bright").base_step == 4
    assert not same(parameters(home / "bright"), parameters(home / "base"))
    out = str(home / "sampled.png")
    assert (
        main(["sample", "--workdir", str(home / "bright"), "--num", "2", "--solver", "sequential", "--out", out]) == 0
    )


def test_a_stopped_training_resumes_bit_for_bit_without_compiling_again(home):
    shutil.copytree(home / "bright", home / "resumed")
    for step in ("3", "4"):
        shutil.rmtree(home / "resumed" / "checkpoints" / step, ignore_errors=True)
    programs = policy_update.update._cache_size()
    assert trained(home, "resumed", *BOUND) == 0
    assert same(parameters(home / "resumed"), parameters(home / "bright"))
    resumed, bright = (read_metrics(home / name / "metrics.csv") for name in ("resumed", "bright"))
    assert [row["kl"] for row in resumed] == [row["kl"] for row in bright]
    # The steps before, and those of the resumed training: one program.
    assert policy_update.update._cache_size() == programs


def test_the_bound_of_the_kl_ends_a_training_within_it(home, monkeypatch, capsys):
    kls = iter([0.0, 0.2, 0.5, 0.9, 1.4])
    before = post_train.DrawnSamples.figures
    monkeypatch.setattr(post_train.DrawnSamples, "figures", lambda self: before(self) | {"kl": next(kls)})
    assert trained(home, "bounded", "--kl-bound", "0.7", "--json", str(home / "bounded.json")) == 0
    figures = json.loads((home / "bounded.json").read_text())
    assert (figures["step"], figures["ending"], figures["last"]["kl"]) == (2, "kl-bound", 0.5)
    assert "step 2 of 4, the last one within the KL of 0.7 nats" in capsys.readouterr().out
    # Those of the training without a bound after as many steps.
    steps = load_run(home / "bounded")[3], load_run(home / "bright", step=2)[3]
    assert steps == (2, 2)
    assert same(parameters(home / "bounded"), load_run(home / "bright", step=2)[2])


def test_a_bound_below_the_kl_of_a_checkpoint_is_refused(home, monkeypatch, capsys):
    before = post_train.DrawnSamples.figures
    monkeypatch.setattr(post_train.DrawnSamples, "figures", lambda self: before(self) | {"kl": 0.9})
    shutil.copytree(home / "bright", home / "lowered")
    assert trained(home, "lowered", "--kl-bound", "0.7") == 2
    assert "kl_bound must be at least the 0.9 nats of the checkpoint at step 4, got 0.7" in capsys.readouterr().err
    assert trained(home, "lowered", "--kl-bound", "0.95") == 0


@pytest.mark.slow
def test_preferences_between_samples(home):
    assert trained(home, "ranked", *PREFERENCES) == 0
    rows = read_metrics(home / "ranked" / "metrics.csv")
    assert rows[1]["loss"] == pytest.approx(math.log(2), rel=1e-4)  # both are the reference at first


@pytest.fixture(scope="module")
def paired(home):
    """A training on a file of pairs, which draws samples at its first and last step alone."""
    rng = np.random.default_rng(0)
    dark, bright = rng.integers(0, 6, (6, 4, 4, 1)), rng.integers(11, 17, (6, 4, 4, 1))
    np.savez(home / "pairs.npz", winner=bright, loser=dark, label=np.arange(6) % 3)
    seldom = [f"--config.train.{name}=1000" for name in ("log_every", "checkpoint_every")]
    options = [*PREFERENCES, *seldom, "--pairs", str(home / "pairs.npz")]
    assert trained(home, "paired", *options, reward="") == 0
    return options


def test_pairs_of_a_file_are_learned(home, paired):
    rows = read_metrics(home / "paired" / "metrics.csv")
    assert rows[-1]["loss"] < 0.5 and "reward" not in rows[0] and rows[-1]["kl"] != 0


def test_a_signal_between_measured_steps_saves_a_checkpoint(home, paired, monkeypatch):
    def file_batch(setup, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_batches.file_batch(setup, step)

    with monkeypatch.context() as patch:
        patch.setattr(post_train, "file_batch", file_batch)
        assert trained(home, "preempted", *paired, reward="") == 0
    assert load_run(home / "preempted")[3] == 2
    assert trained(home, "preempted", *paired, reward="") == 0
    assert load_run(home / "preempted")[3] == 4
    assert same(parameters(home / "preempted"), parameters(home / "paired"))


def test_the_command_of_a_report_asks_for_the_same(home, paired, monkeypatch):
    recorded = dataclasses.replace(read_post_training(home / "paired"), judges=("digit",))
    asked = []

    def post_trained(request):
        asked.append(request.experiment)
        return post_train.PostTrained(request.out, 4, "steps", 0, {}, {"unique": 1.0}, 0.0)

    monkeypatch.setattr(configuration, "read_post_training", lambda workdir: recorded)
    monkeypatch.setattr(post_train, "post_train", post_trained)
    command = shlex.split(configuration.commands(recorded, home / "paired"))
    places = {"BASE": str(home / "base"), "again": str(home / "again")}
    assert main([places.get(word, word) for word in command[1:]]) == 0
    assert asked == [recorded]


@pytest.mark.slow
def test_two_devices_train_what_one_does(home, tmp_path):
    """The samples of both are equal to rounding, and so are the updates."""
    kls = {}
    for devices in (1, 2):
        command = [sys.executable, "-m", "starflow_jax", "post-train", "--workdir", str(home / "base"), *SMALL]
        command += ["--out", str(tmp_path / str(devices)), "--reward", f"{home / 'rewards.py'}:brightness"]
        flags = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [*command, f"--config.mesh.data={devices}"], env=os.environ | {"XLA_FLAGS": flags}, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        kls[devices] = [row["kl"] for row in read_metrics(tmp_path / str(devices) / "metrics.csv")]
    np.testing.assert_allclose(kls[2], kls[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("reward", "options", "sentence"),
    [
        ("rewards.py:shapeless", (), "must return 8 finite numbers, got shape [3]"),
        ("rewards.py:failing", (), "failed with KeyError: 'no key'"),
        ("rewards.py:missing", (), "must define missing(), and does not"),
        ("brightness", (), "--reward must be one of digit"),
        ("", (), "--reward is required without --pairs, got none"),
        ("rewards.py:brightness", ("--class", "3"), "class must be none or from 0 to 2, got 3"),
        ("rewards.py:brightness", ("--caption", "a cat"), "--class and --caption are mutually exclusive"),
        ("rewards.py:brightness", ("--config.train.ema=0.9",), "train.ema must be 0.0 for post-training, got 0.9"),
        ("rewards.py:brightness", ("--config.group_size=3",), "group_size must divide train.batch_size=8, got 3"),
        ("rewards.py:brightness", ("--config.policy.ratio_clip=0",), "policy.ratio_clip must be above 0, got 0"),
        ("rewards.py:brightness", ("--pairs", "x.npz"), "pairs needs method 'dpo', got 'policy-gradient'"),
        ("rewards.py:brightness", ("--method", "dpo", "--pairs", "x.npz"), "pairs file x.npz cannot be read"),
        ("rewards.py:brightness", ("--step", "3"), "step must be one of the checkpoints in"),
        ("rewards.py:brightness", ("--solver", "one-pass"), "contains no learned inverse"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(home, capsys, reward, options, sentence):
    assert trained(home, "new", *options, reward=reward) == 2
    assert sentence in capsys.readouterr().err
    if (home / "new").exists():  # a reward fails on its first samples
        shutil.rmtree(home / "new")


def test_another_training_does_not_go_on_in_the_folder(home, capsys):
    assert trained(home, "bright", "--config.policy.beta=0.5") == 2
    assert "config.policy.beta is 0.25 in the folder and 0.5 in this call" in capsys.readouterr().err
    assert trained(home, "bright", reward="") == 2
    assert (
        "rewards.py:brightness must be given again: the record of a folder executes no code" in capsys.readouterr().err
    )
    assert trained(home, "base") == 2
    assert "contains a run that is not of post-training" in capsys.readouterr().err


def test_a_flow_whose_samples_have_another_density_is_refused(tmp_path, capsys):
    flow = dataclasses.replace(FLOW, scale="unit")
    write_run(tmp_path / "unit", flow, DataConfig(label_drop=0.1), {4: params_of(random_flow(flow))})
    command = ["post-train", "--workdir", str(tmp_path / "unit"), "--out", str(tmp_path / "new"), "--reward", "digit"]
    assert main(command) == 2
    assert "needs a flow whose samples have its density" in capsys.readouterr().err


def test_vectors_are_refused():
    data = DataConfig("two_moons", noise="none")
    flow = dataclasses.replace(CLASSES, image_size=(1, 2), patch_size=1, num_classes=0)
    config = ExperimentConfig("vectors", flow, data, TRAIN)
    with pytest.raises(ValueError, match="post-training needs a run on images or clips, got one on vectors"):
        check_base(config, PostTrainingExperiment("vectors", TRAIN, 0, reward="digit", group_size=2))


@pytest.mark.parametrize("judges", [("step",), ("reward_error",), ("unique",), ("loss",), ("one", "one_error")])
def test_judges_have_columns_of_their_own(home, judges):
    experiment = PostTrainingExperiment("judged", TRAIN, 4, reward="digit", judges=judges, group_size=2)
    functions = dict.fromkeys(judges, lambda samples: np.zeros(len(samples.pixels)))
    with pytest.raises(ValueError, match="judges must have distinct names that no other column"):
        PostTrainingSetup.from_base(home / "base", experiment, functions)
