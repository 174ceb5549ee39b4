"""`starflow port`: weights of the originals to a run and back."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.core.config.build import to_json
from starflow_jax.flows.parameters import abstract
from starflow_jax.porting import from_torch, open_tensors, to_torch
from starflow_jax.porting.infer import contradictions, infer, with_inferred
from starflow_jax.training import load_run, train

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
IMAGE = f"{EXPERIMENTS / 'starflow_3b_t2i.py'}:tiny"
VIDEO = f"{EXPERIMENTS / 'starflow_v_7b.py'}:tiny"
AFHQ = f"{EXPERIMENTS / 'tarflow_afhq256.py'}:tiny"


def tensors_of(config, seed=0, overrides=()):
    """Random tensors of a model, by the originals' names."""
    rng = np.random.default_rng(seed)
    expected = abstract(load_config(config, overrides).flow)[1]
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), expected)
    return to_torch(params)


def save(path, tensors):
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return path


def port(path, config, workdir, *more):
    return main(["port", "--from", str(path), "--config", config, "--workdir", str(workdir), *map(str, more)])


def assert_holds(workdir, tensors):
    config, _, params, step = load_run(workdir)
    assert step == 0
    expected = from_torch(tensors, abstract(config.flow)[1])
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("config", [IMAGE, VIDEO, AFHQ])
def test_round_trip_is_bit_exact(config, tmp_path):
    tensors = tensors_of(config)
    assert port(save(tmp_path / "a.safetensors", tensors), config, tmp_path / "run") == 0
    assert_holds(tmp_path / "run", tensors)
    for name in ("b.safetensors", "b.pth"):
        assert main(["port", "--workdir", str(tmp_path / "run"), "--to-torch", str(tmp_path / name)]) == 0
        back = open_tensors(tmp_path / name)
        assert set(back) == set(tensors)
        assert all(back[name].read().tobytes() == tensors[name].tobytes() for name in tensors)


def test_what_is_written_is_what_pytorch_reads(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = tensors_of(IMAGE)
    assert port(save(tmp_path / "a.safetensors", tensors), IMAGE, tmp_path / "run") == 0
    assert main(["port", "--workdir", str(tmp_path / "run"), "--to-torch", str(tmp_path / "b.pth")]) == 0
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    assert set(back) == set(tensors)
    assert all(np.array_equal(back[name].numpy(), tensors[name]) for name in tensors)
    torch.save(
        {"ema": {f"module.{name}": torch.from_numpy(value) for name, value in tensors.items()}}, tmp_path / "c.pt"
    )
    assert port(tmp_path / "c.pt", IMAGE, tmp_path / "again") == 0
    assert_holds(tmp_path / "again", tensors)


def test_wrappers_and_nesting_are_seen_through_and_old_buffers_left_out(tmp_path, capsys):
    tensors = tensors_of(IMAGE)
    wrapped = {f"model.module._orig_mod.{name}": value for name, value in tensors.items()}
    wrapped["model.module._orig_mod.blocks.0.attn_mask"] = np.ones((3, 3), np.float32)
    wrapped["optimizer.state.0.exp_avg"] = np.ones(3, np.float32)
    assert port(save(tmp_path / "a.safetensors", wrapped), IMAGE, tmp_path / "run") == 0
    assert_holds(tmp_path / "run", tensors)
    printed = capsys.readouterr().out
    assert "ignored 1 buffers that nothing reads: blocks.0.attn_mask" in printed
    assert "left out 1 tensors" in printed


def test_of_several_states_one_is_chosen(tmp_path, capsys):
    model, ema = tensors_of(IMAGE, 0), tensors_of(IMAGE, 1)
    both = {f"model.{name}": value for name, value in model.items()} | {f"ema.{k}": v for k, v in ema.items()}
    path = save(tmp_path / "a.safetensors", both)
    assert port(path, IMAGE, tmp_path / "run") == 2
    assert "several states, 'ema', 'model'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert port(path, IMAGE, tmp_path / "run", "--weights", "ema") == 0
    assert_holds(tmp_path / "run", ema)


def test_half_precision_is_widened_exactly(tmp_path):
    tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors_of(IMAGE).items()}
    assert port(save(tmp_path / "a.safetensors", tensors), IMAGE, tmp_path / "run") == 0
    assert_holds(tmp_path / "run", {name: value.astype(np.float32) for name, value in tensors.items()})


def test_everything_that_does_not_fit_is_in_one_report_and_nothing_is_written(tmp_path, capsys):
    tensors = tensors_of(AFHQ)
    missing = "blocks.1.attn_blocks.0.mlp.norm.weight"
    del tensors[missing]
    tensors["blocks.0.proj_in.bias"] = np.zeros(3, np.float32)
    tensors["blocks.1.proj_in.bias"] = np.zeros(16, np.int32)
    tensors["blocks.9.magic"] = np.zeros(3, np.float32)
    path, report = save(tmp_path / "a.safetensors", tensors), tmp_path / "report.json"
    assert port(path, AFHQ, tmp_path / "run", "--json", report) == 2
    printed = capsys.readouterr().err
    assert f"missing in the file: {missing} (16,)" in printed
    assert "unexpected in the file: blocks.9.magic (3,)" in printed
    assert "blocks.0.proj_in.bias has shape (3,) in the file, (16,) in the model" in printed
    assert "blocks.1.proj_in.bias has type int32 in the file" in printed
    assert "1 missing, 1 unexpected, 1 of another shape, 1 of another type" in printed
    assert not (tmp_path / "run").exists()
    assert len(json.loads(report.read_text())["misfits"]) == 4

    assert port(path, AFHQ, tmp_path / "run", "--allow-partial") == 0
    found = to_torch(load_run(tmp_path / "run")[2])
    np.testing.assert_array_equal(found[missing], np.ones(16))  # as training begins
    np.testing.assert_array_equal(found["blocks.0.proj_in.weight"], tensors["blocks.0.proj_in.weight"])


def test_numbers_that_are_none_are_refused_and_nothing_is_left(tmp_path, capsys):
    tensors = tensors_of(IMAGE)
    tensors["blocks.1.proj_in.weight"][0, 0] = np.nan
    path = save(tmp_path / "a.safetensors", tensors)
    assert port(path, IMAGE, tmp_path / "run", "--allow-partial") == 2
    assert "blocks.1.proj_in.weight contains 1 of 80 values that are infinite or NaN" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_file_decides_what_its_shapes_tell(tmp_path, capsys):
    path = save(tmp_path / "a.safetensors", tensors_of(VIDEO))
    tensors = open_tensors(path)
    flow = load_config(VIDEO).flow
    assert contradictions(flow, tensors) == []
    assert infer(tensors)["denoiser"] == flow.denoiser.layers
    other = dataclasses.replace(flow, deep_width=100, text_dim=12, denoiser=None, layers_per_block=2)
    assert with_inferred(other, tensors) == dataclasses.replace(
        flow, denoiser=with_inferred(other, tensors).denoiser, layers_per_block=infer(tensors)["layers_per_block"]
    )
    assert port(path, VIDEO, tmp_path / "run", "--config.flow.text_dim=12") == 2
    assert f"text_dim is {flow.text_dim} in the file and 12 in the configuration" in capsys.readouterr().err
    assert port(path, VIDEO, tmp_path / "run", "--config.flow.text_dim=12", "--infer") == 0
    assert load_run(tmp_path / "run")[0].flow == flow


def test_a_damaged_checkpoint_does_not_become_a_file(tmp_path, capsys):
    assert port(save(tmp_path / "a.safetensors", tensors_of(AFHQ)), AFHQ, tmp_path / "run") == 0
    digests = tmp_path / "run" / "checkpoints" / "0" / "digests" / "metadata"
    digests.write_text(json.dumps(json.loads(digests.read_text()) | {"params": "00000000"}))
    capsys.readouterr()
    assert main(["port", "--workdir", str(tmp_path / "run"), "--to-torch", str(tmp_path / "b.pth")]) == 2
    assert "is damaged: params does not match its checksum" in capsys.readouterr().err
    assert not (tmp_path / "b.pth").exists()


def test_recordings_are_verified_and_what_is_off_is_said(goldens_dir, tmp_path, capsys):
    folder = goldens_dir / "tarflow_uncond"
    figures = tmp_path / "figures.json"
    assert main(["port", "--verify", str(folder), "--json", str(figures)]) == 0
    assert {"forward/z", "forward/logdets"} <= {one["array"] for one in json.loads(figures.read_text())["arrays"]}
    tensors = load_file(folder / "weights.safetensors")
    tensors["blocks.0.proj_in.bias"] = tensors["blocks.0.proj_in.bias"] * 1.01
    other = save(tmp_path / "other.safetensors", tensors)
    assert main(["port", "--verify", str(folder), "--from", str(other)]) == 1
    assert "OFF" in capsys.readouterr().out
    assert main(["port", "--verify", str(tmp_path)]) == 2


def test_training_begins_with_ported_parameters(tmp_path, capsys):
    file = f"{EXPERIMENTS / 'digits.py'}:tiny"
    still = ("ema=0.0", "steps=1", "warmup=0", "lr=0.0", "min_lr=0.0", "weight_decay=0.0", "evaluate_every=0")
    overrides = [f"--config.train.{field}" for field in still] + ["--config.flow.num_blocks=1"]
    tensors = tensors_of(file, overrides=overrides)
    assert port(save(tmp_path / "a.safetensors", tensors), file, tmp_path / "run", *overrides) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "ported")
    config = load_config(file, overrides)
    # where it was ported to, and from there into a new folder: with a rate of 0 nothing moves
    train(config, tmp_path / "run", progress=False)
    train(config, tmp_path / "new", progress=False, init_from=tmp_path / "ported")
    for name in ("run", "new"):
        _, _, params, step = load_run(tmp_path / name)
        assert step == 1
        found = to_torch(params)
        assert all(np.array_equal(found[key], value) for key, value in tensors.items() if key != "var")

    # what Orbax wrote, in whole arrays, goes back as well
    assert main(["port", "--workdir", str(tmp_path / "new"), "--to-torch", str(tmp_path / "b.safetensors")]) == 0
    back = open_tensors(tmp_path / "b.safetensors")
    assert all(np.array_equal(back[key].read(), value) for key, value in tensors.items() if key != "var")

    arguments = ["train", "--config", file, "--workdir", str(tmp_path / "other"), "--quiet"]
    assert main([*arguments, "--init-from", str(tmp_path / "ported")]) == 2
    assert "flow.num_blocks must be that of" in capsys.readouterr().err
    assert main([*arguments, "--init-from", str(tmp_path)]) == 2
    assert "contains no training run" in capsys.readouterr().err


def test_what_does_not_go_together_is_refused(tmp_path, capsys):
    for arguments, sentence in (
        ([], "name one thing to do"),
        (["--from", "a"], "--workdir is missing"),
        (["--from", "a", "--workdir", "b"], "--config is missing"),
        (["--from", "a", "--config", AFHQ, "--workdir", str(tmp_path / "w")], "a cannot be read"),
        (["--workdir", "b", "--to-torch", "c.npz"], "must end in"),
        (["--workdir", "b", "--to-torch", "c.pth", "--infer"], "--infer does not go with --to-torch"),
        (["--assemble", "a"], "--flow, --autoencoder, --text-encoder is missing"),
        (["--verify", "a", "--assemble", "b"], "got 2 of them"),
    ):
        assert main(["port", *arguments]) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "config.json").write_text(to_json(load_config(AFHQ)))
    assert port("a", AFHQ, tmp_path / "w") == 2
    assert "must be an empty or a new folder" in capsys.readouterr().err
    config = load_config(AFHQ)
    orders = (tuple(reversed(range(config.flow.grid[0] * config.flow.grid[1]))),) * config.flow.num_blocks
    changed = dataclasses.replace(config, flow=dataclasses.replace(config.flow, orders=orders))
    (tmp_path / "w" / "config.json").write_text(to_json(changed))
    assert main(["port", "--workdir", str(tmp_path / "w"), "--to-torch", str(tmp_path / "new" / "c.pth")]) == 2
    assert "flow.orders must be None for files of the PyTorch originals" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
