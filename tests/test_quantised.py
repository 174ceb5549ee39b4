"""Quantised flows: exact inverses of themselves, near the float32 flow, half as large or less, and not trained."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_devices import run_on_eight_devices
from random_flows import CLASSES, VIDEO, normal, random_flow
from safetensors.numpy import load_file, save_file

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config, to_json
from starflow_jax.flows.flow import standard_normal_log_prob
from starflow_jax.flows.parameters import abstract, merge, num_bytes, split
from starflow_jax.nn.linear import Compute
from starflow_jax.nn.quantised_linear import FEW_ROWS, TILE, QuantisedLinear, _rounded_product, _tiled_product
from starflow_jax.nn.stored_kernels import quantised_kernel, values
from starflow_jax.porting import to_torch
from starflow_jax.sharding.layout import Layout
from starflow_jax.solvers import Jacobi, Sequential, inverse
from starflow_jax.training import load_run
from starflow_jax.training.checkpoints import quantised_streams
from starflow_jax.training.checkpoints.array_writing import open_manager, save_arguments
from starflow_jax.training.checkpoints.initial_state import check_source
from starflow_jax.training.checkpoints.quantised_streams import quantised_params
from starflow_jax.training.checkpoints.retention import NewestAndBest

pytest.importorskip("qwix")

SLOW = pytest.mark.slow
EXPERIMENT = "experiments/tarflow_afhq256.py:tiny"
ORIGIN = "hf://someone/something@0123456"


# Kernels


@pytest.mark.parametrize(("scheme", "inputs", "groups"), [("int8", 100, 1), ("int4", 64, 2), ("int4", 100, 4)])
def test_integers_are_off_by_half_a_step_at_most(scheme, inputs, groups):
    kernel = np.random.default_rng(0).normal(size=(inputs, 2, 3)).astype(np.float32)
    numbers, scale = quantised_kernel(kernel, scheme)
    assert scale.shape == (groups, 2, 3)
    error = np.abs(np.asarray(values(jnp.asarray(numbers), jnp.asarray(scale), scheme)) - kernel)
    assert np.all(error.reshape(groups, -1, 2, 3) <= (0.5 + 1e-3) * scale[:, None])
    assert numbers.nbytes == kernel.nbytes // (4 if scheme == "int8" else 8)


def test_a_part_of_the_bytes_is_a_part_of_a_kernel_of_four_bits():
    numbers, scale = map(jnp.asarray, quantised_kernel(normal((64, 3)), "int4"))
    whole = values(numbers, scale, "int4")
    np.testing.assert_array_equal(values(numbers[16:], scale[1:], "int4"), whole[32:])


def test_fp8_keeps_three_bits_of_the_mantissa():
    kernel = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    numbers, scale = quantised_kernel(kernel, "fp8")
    found = np.asarray(values(jnp.asarray(numbers), jnp.asarray(scale), "fp8"))
    # Half a unit in the last place, and half of the smallest subnormal number, 2^-9.
    assert np.all(np.abs(found - kernel) <= np.abs(kernel) / 16 + scale * 2.0**-10)


def test_the_largest_weight_of_a_channel_keeps_its_sign():
    kernel = np.full((8, 2), 0.1, np.float32)
    kernel[0] = 1.0, -1.0
    for scheme, largest in (("int8", 127.5), ("int4", 7.5), ("fp8", 448)):
        numbers, scale = map(jnp.asarray, quantised_kernel(kernel, scheme))
        np.testing.assert_allclose(scale, 1 / largest, rtol=1e-6)
        found = np.asarray(values(numbers, scale, scheme))
        # Half a step from the largest integer, to either side.
        np.testing.assert_allclose(found[0], kernel[0], atol=0 if scheme == "fp8" else 0.501 / largest, rtol=1e-6)
        assert found[0, 0] == pytest.approx(1.0 if scheme == "fp8" else 1 - 0.5 / largest, rel=1e-6)


def test_groups_of_few_inputs_are_refused():
    config = dataclasses.replace(CLASSES, quantise="int4", heads=2)
    with pytest.raises(ValueError, match="even numbers of inputs that have a divisor from 8 to 32, got 74, "):
        dataclasses.replace(config, width=74)


def test_a_product_tile_by_tile_is_the_product():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(FEW_ROWS, 2 * TILE + 5)), jnp.float32)
    kernel = jnp.asarray(rng.integers(-127, 128, (2 * TILE + 5, 6)), jnp.int8)
    expected = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(_tiled_product(x, kernel), expected, rtol=1e-5, atol=1e-3)


def test_rounding_of_a_row_depends_on_that_row_alone_and_has_the_derivative_of_the_product():
    rng = np.random.default_rng(0)
    x, kernel, scale = normal((3, 8)), jnp.asarray(rng.integers(-127, 128, (8, 4)), jnp.int8), jnp.full((1, 4), 0.01)
    out, tangent = jax.jvp(lambda x: _rounded_product(x, kernel, scale), (x,), (jnp.ones_like(x),))
    weights = np.asarray(kernel, np.float32) * 0.01
    np.testing.assert_allclose(tangent, np.ones((3, 8)) @ weights, rtol=1e-5)
    # Half a step of every input, times the weights.
    steps = np.abs(np.asarray(x)).max(axis=1, keepdims=True) / 254
    assert np.all(np.abs(out - x @ weights) <= 1.01 * steps * np.abs(weights).sum(axis=0))
    scaled = x.at[1].multiply(1000.0)
    np.testing.assert_array_equal(_rounded_product(scaled, kernel, scale)[::2], out[::2])


# Flows


def quantised(flow, scheme):
    config = dataclasses.replace(flow.config, quantise=scheme)
    return merge(abstract(config)[0], jax.tree.map(jnp.asarray, quantised_params(config, split(flow)[1])))


@pytest.fixture(scope="module")
def flow():
    return random_flow(CLASSES)


@pytest.fixture(scope="module")
def data():
    return normal((2, 4, 4, 1)), jnp.asarray([0, 2])


@pytest.mark.parametrize(
    "scheme", ["int8", *(pytest.param(n, marks=SLOW) for n in ("int8-activations", "fp8", "int4"))]
)
def test_a_quantised_flow_is_the_inverse_of_its_own_map(flow, data, scheme):
    stored, (x, labels) = quantised(flow, scheme), data
    # Rounded inputs may fall to the other side of a rounding boundary where sums are ordered otherwise.
    tolerance = 2e-2 if scheme == "int8-activations" else 1e-4

    @jax.jit
    def outputs(flow, stored):
        out = stored.forward(x, labels)
        return out.z, standard_normal_log_prob(out.z) + out.logdet, flow.log_prob(x, labels)

    z, log_p, exact = outputs(flow, stored)
    back = inverse(stored, z, labels, solver=Sequential()).x
    np.testing.assert_allclose(back, x, atol=tolerance, rtol=tolerance)
    # It is another flow, near the float32 one.
    difference = np.abs(log_p - exact)
    assert np.all(difference > 0) and np.all(difference < (2.0 if scheme in ("int4", "fp8") else 0.5))
    if scheme == "int8":
        return  # a solver is enough for a quick test
    # The solvers read a flow in the same way, however it is stored.
    other = inverse(stored, z, labels, solver=Jacobi(block=4, max_iterations=8, tolerance=1e-12)).x
    np.testing.assert_allclose(other, back, atol=tolerance, rtol=tolerance)


@SLOW
def test_over_a_mesh_a_quantised_flow_is_that_of_one_device():
    found = json.loads(run_on_eight_devices("quantised_on_eight_devices.py"))
    assert set(found) == {"int8", "fp8", "int4"}
    for scheme, figures in found.items():
        # Sums of another order round a few outputs to the neighbouring bfloat16; weights that are rounded to bfloat16
        # would move most of them, by 1e-3 in the mean.
        assert figures["layers"] < 1e-4 and figures["flow"] < 1e-4, (scheme, figures)
        # Kernels are gathered over fsdp in the bytes that they are stored in, and move in no other way. Where inputs
        # are divided over tensor, the float32 outputs are summed.
        each = 2 if scheme == "int4" else 1
        summed = ["all-reduce", "f32[8,4,64]"]
        assert figures["exchanged"] == {
            "up of 64": [["all-gather", f"u8[{64 // each},32]"]],
            "down of 64": [["all-gather", f"u8[{32 // each},64]"], summed],
            "down of 96": [["all-gather", f"u8[{48 // each},64]"], summed],
        }, scheme


def test_parameters_outside_of_the_layers_stay_float32(flow):
    before = split(flow)[1]
    block = quantised_params(dataclasses.replace(CLASSES, quantise="int8"), before)["blocks"]["1"]
    layer = block["transformer"]["layers"]["attention"]["qkv"]
    assert layer["kernel"].dtype == np.int8 and layer["scale"].dtype == np.float32
    for name in ("proj_in", "proj_out"):
        np.testing.assert_array_equal(block[name]["kernel"], before["blocks"]["1"][name]["kernel"])


def test_the_denoiser_and_shared_layers_are_quantised_too():
    tree = abstract(dataclasses.replace(VIDEO, quantise="int4"))[1]
    assert tree["denoiser"]["transformer"]["layers"]["mlp"]["up"]["kernel"].dtype == np.uint8
    shared = dataclasses.replace(
        VIDEO, quantise="int8", denoiser=None, layers_per_block=2, shared_layers=1, deep_width=20
    )
    assert abstract(shared)[1]["shared"]["layers"]["mlp"]["up"]["kernel"].dtype == np.int8


@pytest.mark.parametrize("experiment", ["digits", "moving_digits"])
def test_an_experiment_takes_half_the_memory_or_less(experiment):
    flow = load_config(f"experiments/{experiment}.py").flow
    whole, *stored = (
        num_bytes(abstract(dataclasses.replace(flow, quantise=scheme))[1]) for scheme in (None, "int8", "fp8", "int4")
    )
    assert all(size < whole / 2 for size in stored)


# Runs


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A file of tensors, and the runs that were ported from it: as float32 and with int8 weights."""
    home = tmp_path_factory.mktemp("quantised")
    params = split(random_flow(load_config(EXPERIMENT).flow))[1]
    tensors = {name: np.ascontiguousarray(value) for name, value in to_torch(params).items()}
    save_file(tensors, home / "weights.safetensors")
    assert port(home, "run") == 0 and port(home, "int8", "--quantise", "int8") == 0
    (home / "run/origin.json").write_text(json.dumps({"from": ORIGIN}))  # as of released weights
    return home


def port(home, name, *more):
    source = ["--from", str(home / "weights.safetensors"), "--config", EXPERIMENT]
    return main(["port", *source, "--workdir", str(home / name), *more])


@pytest.mark.parametrize("scheme", ["int8", "fp8", pytest.param("int4", marks=SLOW)])
def test_a_quantised_folder_holds_what_quantising_while_reading_gives(home, scheme, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(quantised_streams, "quantised_kernel", lambda *args: made.append(0) or quantised_kernel(*args))
    target, figures = home / f"{scheme}-of-run", home / f"{scheme}.json"
    options = ["--workdir", str(target), "--json", str(figures)]
    assert main(["port", "--flow", str(home / "run"), "--quantise", scheme, *options]) == 0
    found = json.loads(figures.read_text())
    assert found["share"] < 0.7  # of a model whose layers are 16 wide
    assert found["origin"] == json.loads((target / "origin.json").read_text())["from"] == ORIGIN
    config, _, params, step = load_run(home / "run", quantise=scheme)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = sum(leaf.shape[0] for path, leaf in leaves if path[-1].key == "scale")
    assert len(made) == 2 * kernels  # each kernel is read once, for its numbers and its scales
    assert config.flow.quantise == scheme and step == 0
    for folder in (target, home / "int8") if scheme == "int8" else (target,):
        found, _, stored, _ = load_run(folder)
        assert found.flow == config.flow
        jax.tree.map(np.testing.assert_array_equal, stored, params)
    capsys.readouterr()
    assert main(["info", "--workdir", str(target)]) == 0
    assert f"as {scheme}, " in capsys.readouterr().out


def test_a_quantised_run_scores(home):
    from starflow_jax import from_pretrained, log_prob

    def scored(**options):
        model = from_pretrained(home / "int8", **options)
        flow = model.config.flow
        return flow.quantise, np.asarray(log_prob(model, normal((2, *flow.image_shape, flow.channels))))

    (scheme, found), (rounded_scheme, rounded) = scored(), scored(quantise="int8-activations")
    assert (scheme, rounded_scheme) == ("int8", "int8-activations")
    # The same numbers serve products of rounded inputs, which change the likelihood a little.
    assert np.all(np.isfinite(found)) and np.all(found != rounded)
    np.testing.assert_allclose(found, rounded, rtol=0.01)


@pytest.mark.slow
def test_the_command_samples_alike_from_a_quantised_folder_and_while_it_quantises(home):
    for name, options in (
        ("one", ["--quantise", "int8", "--workdir", str(home / "run")]),
        ("two", ["--model", str(home / "int8")]),
    ):
        assert main(["sample", *options, "--num", "2", "--out", str(home / f"{name}.npz")]) == 0
    one, two = (np.load(home / f"{name}.npz") for name in ("one", "two"))
    np.testing.assert_array_equal(one["image"], two["image"])


def test_a_published_folder_holds_integers_and_scales(home):
    from safetensors import safe_open

    from starflow_jax import from_pretrained

    out = home / "published"
    assert main(["publish", "--workdir", str(home / "int8"), "--out", str(out), "--license", "mit"]) == 0
    with safe_open(out / "model.safetensors", "np") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    assert kinds["blocks.0.attn_blocks.0.mlp.main.0.weight"] == np.int8
    assert kinds["blocks.0.attn_blocks.0.mlp.main.0.weight_scale"] == np.float32
    found, stored = (from_pretrained(path) for path in (out, home / "int8"))
    jax.tree.map(np.testing.assert_array_equal, found.params, stored.params)


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_other_uses_are_refused_with_a_sentence(home, capsys, tmp_path):
    stored = home / "int8"
    said = refused(capsys, "sample", "--workdir", stored, "--quantise", "fp8", "--out", tmp_path / "a.png")
    assert "--quantise must be int8 or int8-activations, as the weights in" in said
    said = refused(capsys, "port", "--flow", stored, "--quantise", "int4", "--workdir", tmp_path / "again")
    assert "--flow must be a float32 run" in said and not (tmp_path / "again").exists()
    said = refused(capsys, "port", "--workdir", stored, "--to-torch", tmp_path / "weights.safetensors")
    assert "flow.quantise must be None for files of the PyTorch originals" in said
    said = refused(capsys, "train", "--config", EXPERIMENT, "--workdir", stored)
    assert "must have float32 weights to be trained" in said
    with pytest.raises(ValueError, match=r"--init-from .* must have float32 weights to be trained"):
        check_source(load_config(EXPERIMENT), stored)
    said = refused(
        capsys, "train", "--config", EXPERIMENT, "--workdir", tmp_path / "new", "--config.flow.quantise=int8"
    )
    assert "must have float32 weights to be trained" in said
    # Before the parameters are read, which are not there.
    unread = tmp_path / "unread"
    shutil.copytree(stored, unread)
    shutil.rmtree(unread / "checkpoints/0/params")
    post_train = ["post-train", "--workdir", unread, "--out", tmp_path / "post", "--reward", "digit"]
    for command in (["train-inverse", "--workdir", unread], post_train):
        said = refused(capsys, *command)
        assert f"workdir {unread} must have float32 weights to be trained" in said
    assert not (unread / "inverse").exists() and not (tmp_path / "post").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [('{"from": ', "origin.json is not JSON"), ('{"from": 1}', "must hold the address"), (None, "it is a folder")],
)
def test_a_damaged_origin_is_refused(home, capsys, tmp_path, text, sentence):
    shutil.copytree(home / "run", tmp_path / "run")
    origin = tmp_path / "run/origin.json"
    origin.unlink()
    origin.mkdir() if text is None else origin.write_text(text)
    said = refused(capsys, "port", "--flow", tmp_path / "run", "--quantise", "int8", "--workdir", tmp_path / "new")
    assert sentence in said and str(origin) in said and not (tmp_path / "new").exists()


def test_files_of_quantised_weights_need_their_scheme_and_all_tensors(home, capsys, tmp_path):
    from starflow_jax.training.checkpoints.ported import write_torch_file

    file, target = tmp_path / "int8.safetensors", tmp_path / "new"
    write_torch_file(file, home / "int8", load_run(home / "int8")[0], None, ema=False)
    command = ["port", "--from", file, "--config", EXPERIMENT, "--workdir", target]
    said = refused(capsys, *command)
    assert "--from has int8 weights, which need --quantise int8, got none" in said and said.count("\n") == 1
    assert "need --quantise int8, got fp8" in refused(capsys, *command, "--quantise", "fp8")
    tensors = load_file(file)
    del tensors["blocks.0.attn_blocks.0.mlp.main.0.weight"]
    save_file(tensors, file)
    said = refused(capsys, *command, "--quantise", "int8", "--allow-partial")
    assert "quantised weights have no initial values" in said and "1 missing" in said and not target.exists()


def test_arrays_that_every_host_wrote_by_itself_are_quantised(home, tmp_path):
    config, _, params, _ = load_run(home / "run")
    shutil.copytree(home / "run", tmp_path / "run")
    with open_manager(tmp_path / "own", NewestAndBest(1, 0, {}), own=("params",)) as manager:
        manager.save(0, args=save_arguments({"params": params}, {}, own=True))
    shutil.rmtree(tmp_path / "run/checkpoints/0/params")
    shutil.move(tmp_path / "own/0/params", tmp_path / "run/checkpoints/0/params")
    assert not (tmp_path / "run/checkpoints/0/params/manifest.ocdbt").exists()
    stored, expected = (load_run(folder, quantise="int8")[2] for folder in (tmp_path / "run", home / "run"))
    jax.tree.map(np.testing.assert_array_equal, stored, expected)
    # A checkpoint of another run, by its configuration, is not read either.
    other = dataclasses.replace(config, seed=config.seed + 1)
    (tmp_path / "run/config.json").write_text(to_json(other))
    with pytest.raises(ValueError, match=r"is of another run: config\.seed"):
        load_run(tmp_path / "run", quantise="int8")


def test_a_damaged_run_is_not_quantised(home, capsys, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    digests = tmp_path / "run/checkpoints/0/digests/metadata"
    values = json.loads(digests.read_text())
    digests.write_text(json.dumps(values | {"params": "00000000"}))
    said = refused(capsys, "port", "--flow", tmp_path / "run", "--quantise", "int8", "--workdir", tmp_path / "new")
    assert "is damaged: params does not match its checksum" in said and not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="params does not match its checksum"):
        load_run(tmp_path / "run", quantise="int8")


def test_without_qwix_the_extra_is_named(home, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ValueError, match=r"pip install 'starflow-jax\[quantise\]'"):
        quantised_kernel(np.ones((2, 2), np.float32), "int8")
    # Stored numbers that are read without it are not read for products of rounded inputs.
    sample = ["sample", "--workdir", home / "int8", "--out", tmp_path / "a.png"]
    said = refused(capsys, *sample, "--quantise", "int8-activations")
    assert "quantisation needs the package qwix: pip install 'starflow-jax[quantise]'" in said


def test_rounded_inputs_are_of_one_device():
    def made(devices):
        mesh = jax.sharding.AbstractMesh((devices,), ("tensor",))
        compute = Compute(layout=Layout(mesh), quantise="int8-activations")
        return QuantisedLinear(4, 4, jax.random.key(0), name="up", compute=compute)

    # A plan for one device that is not attached has a layout of that device.
    assert made(1).compute.layout is not None
    with pytest.raises(ValueError, match="int8-activations runs on one device, got a mesh of 2 devices"):
        made(2)
