"""Every optimizer that a configuration can name, against the formulas of its paper in float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from starflow_jax.core.config import TrainConfig
from starflow_jax.core.config.build import build, from_json, to_json
from starflow_jax.core.config.optimizer_config import OptimizerConfig
from starflow_jax.sharding.rules import partition_spec
from starflow_jax.training.step.gradient_transformations import check_lr_factors
from starflow_jax.training.step.learning_rate_schedule import LearningRateSchedule
from starflow_jax.training.step.optimizer import apply_updates, gradient_point, init_optimizer

LR, DECAY, B1, B2 = 1e-2, 0.1, 0.9, 0.95
LAYERS = ("blocks", "0", "transformer", "layers")


def train(name="adamw", *, train_fields=None, **fields):
    values = {"steps": 100, "batch_size": 1, "lr": LR, "weight_decay": DECAY, "betas": (B1, B2)}
    return build(TrainConfig, {**values, "optimizer": {"name": name, **fields}, **(train_fields or {})})


def tree(seed):
    """Two layers of a transformer: q, k, v of two heads of size 3, an MLP, and parameters that are no matrices."""
    rng = np.random.default_rng(seed)
    layers = {
        "attention": {"qkv": {"kernel": rng.normal(size=(2, 5, 2, 3, 3))}, "norm": {"weight": rng.normal(size=(2, 5))}},
        "mlp": {"up": {"kernel": rng.normal(size=(2, 5, 7))}},
    }
    block = {"proj_out": {"kernel": rng.normal(size=(5, 4))}, "transformer": {"layers": layers}}
    params = {"blocks": {"0": block}, "denoiser": {"w": rng.normal(size=(3,))}}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def at(params, *path):
    for name in (*LAYERS, *path):
        params = params[name]
    return np.asarray(params, np.float64)


def followed(config, count=3):
    """The start, the gradients, the parameters and the state after some updates."""
    params, gradients = tree(0), [tree(seed + 1) for seed in range(count)]
    state = init_optimizer(config, params)
    update = jax.jit(lambda p, s, g: apply_updates(config, p, s, g, step=0, lr=LR)[:2])
    for gradient in gradients:
        params, state = update(params, state, gradient)
    return tree(0), gradients, params, state


def adam(w, gradients):
    m = v = 0.0
    for n, g in enumerate(gradients, 1):
        m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**2
        w = w - LR * (m / (1 - B1**n) / (np.sqrt(v / (1 - B2**n)) + 1e-8) + DECAY * w)
    return w


def test_lion_steps_by_the_sign_of_the_interpolated_momentum():
    start, gradients, params, state = followed(train("lion"))
    w, m = at(start, "mlp", "up", "kernel"), 0.0
    for g in (at(g, "mlp", "up", "kernel") for g in gradients):
        w, m = w - LR * (np.sign(0.9 * m + 0.1 * g) + DECAY * w), 0.99 * m + 0.01 * g
    np.testing.assert_allclose(at(params, "mlp", "up", "kernel"), w, rtol=1e-5, atol=1e-6)
    count = sum(leaf.size for leaf in jax.tree.leaves(params["blocks"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state["flow"]) if leaf.ndim) == count


def test_the_denoiser_keeps_adamw_with_its_own_rate():
    ours, adamw = (followed(train(name))[2]["denoiser"]["w"] for name in ("lion", "adamw"))
    np.testing.assert_array_equal(ours, adamw)


def newton_schulz(matrix, iterations=5):
    """The quintic iteration of Muon's author, of a matrix with at most as many rows as columns."""
    if matrix.shape[0] > matrix.shape[1]:
        return newton_schulz(matrix.T, iterations).T
    x = matrix / np.linalg.norm(matrix)
    for _ in range(iterations):
        product = x @ x.T
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    return x


@pytest.mark.parametrize("update_rms", [0.2, None])
def test_muon_makes_each_matrix_orthogonal_and_leaves_the_rest_to_adamw(update_rms):
    start, gradients, params, _ = followed(train("muon", muon={"nesterov": False, "update_rms": update_rms}))

    def muon(w, gradients):
        """One matrix [inputs, outputs]."""
        momentum = 0.0
        factor = np.sqrt(max(1.0, w.shape[1] / w.shape[0])) if update_rms is None else 0.2 * np.sqrt(max(w.shape))
        for g in gradients:
            momentum = 0.95 * momentum + 0.05 * g
            w = w - LR * (factor * newton_schulz(momentum) + DECAY * w)
        return w

    for layer in range(2):
        up = [at(one, "mlp", "up", "kernel")[layer] for one in (start, *gradients)]
        np.testing.assert_allclose(at(params, "mlp", "up", "kernel")[layer], muon(up[0], up[1:]), rtol=1e-4, atol=1e-5)
        for part in range(3):  # of q, k and v
            values = [at(one, "attention", "qkv", "kernel")[layer, :, :, part] for one in (start, *gradients)]
            expected = muon(values[0].reshape(5, 6), [g.reshape(5, 6) for g in values[1:]]).reshape(5, 2, 3)
            moved = at(params, "attention", "qkv", "kernel")[layer, :, :, part]
            np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5)
    norms = [at(one, "attention", "norm", "weight") for one in (start, *gradients)]
    np.testing.assert_allclose(at(params, "attention", "norm", "weight"), adam(norms[0], norms[1:]), rtol=1e-4)
    head = [np.asarray(one["blocks"]["0"]["proj_out"]["kernel"], np.float64) for one in (start, *gradients)]
    np.testing.assert_allclose(params["blocks"]["0"]["proj_out"]["kernel"], adam(head[0], head[1:]), rtol=1e-4)


def test_the_singular_values_of_a_step_of_muon_are_near_one():
    config = train("muon", muon={"nesterov": False, "update_rms": None}, train_fields={"weight_decay": 0.0})
    start, _, params, _ = followed(config, count=1)
    step = (at(start, "mlp", "up", "kernel") - at(params, "mlp", "up", "kernel"))[0] / (LR * np.sqrt(7 / 5))
    singular = np.linalg.svd(step)[1]
    assert singular.min() > 0.5 and singular.max() < 1.3


def test_adafactor_stores_a_row_and_a_column_of_second_moments():
    options = {"momentum": 0.0, "factor_from": 2, "clip": 1.0}
    start, gradients, params, state = followed(train("adafactor", adafactor=options))
    w, row, column = (np.asarray(start["blocks"]["0"]["proj_out"]["kernel"], np.float64), 0.0, 0.0)
    for n, g in enumerate(gradients, 1):
        g = np.asarray(g["blocks"]["0"]["proj_out"]["kernel"], np.float64)
        decay = 1 - n**-0.8
        row, column = (decay * old + (1 - decay) * (g**2).mean(axis) for old, axis in ((row, 1), (column, 0)))
        step = g / np.sqrt(np.outer(row, column) / row.mean())
        step = step / max(1.0, np.sqrt((step**2).mean()))
        w = w - LR * (step + DECAY * w)
    np.testing.assert_allclose(params["blocks"]["0"]["proj_out"]["kernel"], w, rtol=1e-4, atol=1e-6)
    kernels = [leaf.shape for leaf in jax.tree.leaves(state["flow"])]
    assert (4,) in kernels and (5,) in kernels and (5, 4) not in kernels


def test_schedule_free_stores_the_average_and_computes_gradients_beside_it():
    config = train("schedule-free", train_fields={"decay": "constant"})
    params = tree(0)
    state = init_optimizer(config, params)
    gradients = [tree(seed + 1) for seed in range(3)]
    x = z = np.asarray(params["blocks"]["0"]["proj_out"]["kernel"], np.float64)
    v = 0.0
    update = jax.jit(lambda p, s, g: apply_updates(config, p, s, g, step=0, lr=LR)[:2])
    for n, gradient in enumerate(gradients, 1):
        y = 0.1 * z + 0.9 * x
        point = gradient_point(config, params, state)["blocks"]["0"]["proj_out"]["kernel"]
        np.testing.assert_allclose(point, y, rtol=1e-4, atol=1e-6)
        params, state = update(params, state, gradient)
        g = np.asarray(gradient["blocks"]["0"]["proj_out"]["kernel"], np.float64)
        v = B2 * v + (1 - B2) * g**2
        z = z - LR * (g / (np.sqrt(v / (1 - B2**n)) + 1e-8) + DECAY * y)
        x = (1 - 1 / n) * x + z / n
        np.testing.assert_allclose(params["blocks"]["0"]["proj_out"]["kernel"], x, rtol=1e-4, atol=1e-6)
    assert gradient_point(train(), params, state) is params


def test_a_factor_scales_the_rate_of_the_first_pattern_that_matches():
    factors = (("*/mlp/*", 0.0), ("blocks/*", 0.5))
    start, _, whole, _ = followed(train(), count=1)
    _, _, scaled, _ = followed(train(lr_factors=factors), count=1)
    np.testing.assert_array_equal(at(scaled, "mlp", "up", "kernel"), at(start, "mlp", "up", "kernel"))
    half, full = (
        at(p, "attention", "qkv", "kernel") - at(start, "attention", "qkv", "kernel") for p in (scaled, whole)
    )
    np.testing.assert_allclose(half, full / 2, rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(scaled["denoiser"]["w"], whole["denoiser"]["w"])
    with pytest.raises(ValueError, match=r"lr_factors must have patterns .*'blocks/0/proj_out/kernel'.* got 'block/"):
        check_lr_factors(OptimizerConfig(lr_factors=(("block/0/*", 2.0),)), start)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor"])
def test_first_moments_are_stored_in_bfloat16_and_second_ones_are_not(name):
    fields = {"adafactor": {"factor_from": 2}} if name == "adafactor" else {}
    _, _, params, state = followed(train(name, moment_dtype="bfloat16", **fields), count=1)
    moments = [leaf for leaf in jax.tree.leaves(state["flow"]) if leaf.ndim]
    halves = sum(leaf.size for leaf in moments if leaf.dtype == jnp.bfloat16)
    assert halves == sum(leaf.size for leaf in jax.tree.leaves(params["blocks"]))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    if name == "adamw":
        assert sum(leaf.size for leaf in moments if leaf.dtype == jnp.float32) == halves


def test_a_skipped_update_leaves_every_optimizer_as_it_was():
    for name in ("adafactor", "muon"):
        config, params = train(name), tree(0)
        state = init_optimizer(config, params)
        bad = jax.tree.map(lambda leaf: leaf * jnp.nan, tree(1))
        update = jax.jit(lambda p, s, g, config=config: apply_updates(config, p, s, g, step=0, lr=LR))
        moved, after, report = update(params, state, bad)
        assert not report.applied
        for old, new in zip(jax.tree.leaves((params, state)), jax.tree.leaves((moved, after)), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"optimizer": {"name": "adam"}}, "optimizer.name must be one of 'adamw', .* got 'adam'"),
        (
            {"optimizer": {"lion": {"betas": (0.5, 0.5)}}},
            "optimizer.lion applies to optimizer.name 'lion', got .*'adamw'",
        ),
        (
            {"optimizer": {"name": "muon", "muon": {"momentum": 1.0}}},
            "optimizer.muon.momentum must be below 1, got 1.0",
        ),
        ({"optimizer": {"name": "muon", "muon": {"iterations": 0}}}, "iterations must be an integer >= 1, got 0"),
        ({"optimizer": {"lr_factors": (("blocks/*", -1.0),)}}, "lr_factors of 'blocks/\\*' must be .* got -1.0"),
        ({"optimizer": {"name": "schedule-free"}}, "decay must be 'constant' for optimizer.name 'schedule-free', got"),
        ({"optimizer": {"name": "schedule-free"}, "decay": "constant", "ema": 0.9}, "ema must be 0 .* got 0.9"),
        ({"decay_updates": 5}, "decay_updates applies to decay 'linear', got 5 for 'cosine'"),
        ({"decay": "linear"}, "decay_updates must be from 1 to the 100 updates after the warm-up, got 0"),
        ({"decay": "linear", "decay_updates": 81, "warmup": 20}, "from 1 to the 80 updates .* got 81"),
        ({"optimizer": {"name": "adafactor", "adafactor": {"clip": 0.0}}}, "adafactor.clip must be above 0, got 0.0"),
    ],
)
def test_bad_options_are_one_sentence(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(TrainConfig, {"steps": 100, "batch_size": 1, "lr": 1e-3, **fields})


def test_a_configuration_with_an_optimizer_survives_json():
    config = train("muon", muon={"update_rms": None}, lr_factors=(("blocks/0/*", 0.5),))
    assert from_json(to_json(config), TrainConfig) == config


def test_warm_up_stable_phase_and_decay():
    schedule = LearningRateSchedule(100, 10, 1.0, 0.1, decay="linear", decay_updates=20)
    assert [schedule.rate(n) for n in (10, 11, 80, 90, 100, 120)] == pytest.approx([1, 1, 1, 0.55, 0.1, 0.1])
    constant = LearningRateSchedule(100, 10, 1.0, 0.1, decay="constant")
    assert [constant.rate(n) for n in (5, 10, 100, 120)] == pytest.approx([0.55, 1, 1, 1])
    updates = np.arange(1, 121)
    for one in (schedule, constant):
        np.testing.assert_allclose(one(updates - 1), [one.rate(int(n)) for n in updates], rtol=1e-6)


def test_factored_moments_are_replicated():
    assert partition_spec("opt_state/flow/v_row/blocks/0/qkv/kernel", 1) == (None,)
    assert partition_spec("mu/blocks/0/qkv/kernel", 5) == (None, "fsdp", "tensor", None, None)


@pytest.mark.slow
def test_every_optimizer_over_a_mesh_is_that_of_one_device():
    script = Path(__file__).parent / "optimizers_on_eight_devices.py"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags}
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    errors = json.loads(run.stdout)
    assert set(errors) == {"lion", "adafactor", "muon", "schedule-free"}
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.slow
def test_the_benchmark_compares_every_optimizer_with_adamw(tmp_path, capsys):
    from starflow_jax.experiments.benchmarks import optimizers

    out = tmp_path / "figures.json"
    assert optimizers.main(["--out", str(tmp_path / "runs"), "--quick", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "digits, muon" in printed and "moving digits, adamw" in printed
    figures = json.loads(out.read_text())
    assert len(figures["digits"]["muon"]["runs"][0]["bits_per_dim"]) == 2
