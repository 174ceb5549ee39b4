"""An autoencoder inside the training step: same updates as on precomputed latents, and it is not trained."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from picture_files import recorded

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig, load_config
from starflow_jax.evaluation.likelihood.held_out import held_out_score
from starflow_jax.flows.parameters import abstract
from starflow_jax.media import write_png
from starflow_jax.models.autoencoders import (
    PatchPCA,
    decode_by,
    fit_patch_pca,
    load_autoencoder,
    save_autoencoder,
    storage,
)
from starflow_jax.sampling import to_pixels
from starflow_jax.sharding.rules import partition_spec
from starflow_jax.training import Snapshot, init_state, load_run, train, train_steps
from starflow_jax.training.loop.metrics import read_metrics
from starflow_jax.training.step.frozen_autoencoder import Frozen, load_encoder, open_with_encoder

leaves_with_path = jax.tree_util.tree_leaves_with_path
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    flow = dict(family="tarflow", channels=4, image_size=4, patch_size=2, width=16, num_blocks=2, layers_per_block=1,
                head_dim=16, num_classes=2)
    data = dict(source="npz", path={root!r}, noise="gaussian", noise_std=0.2, label_drop=0.3,
                autoencoder={root!r} + "/a.npz")
    train = dict(steps=5, batch_size=4, lr=1e-2, warmup=0, steps_per_call=2, log_every=1)
    return ConfigDict(dict(name="f", flow=flow, data=data, train=train))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images, an autoencoder fitted to them, an experiment file, and their latents."""
    root = tmp_path_factory.mktemp("frozen")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    for split in ("train", "test"):
        np.savez(root / f"{split}.npz", image=images, label=np.arange(12) % 2)
    autoencoder, params = fit_patch_pca(images / 127.5 - 1.0, 2, 4)
    save_autoencoder(root / "a.npz", autoencoder, params)
    (root / "c.py").write_text(CONFIG.format(root=str(root)))
    arguments = ["--config", str(root / "c.py"), "--out", str(root / "latents"), "--dtype", "float32", "--quiet"]
    assert main(["encode", *arguments]) == 0  # by the experiment's own autoencoder
    return root


@pytest.fixture(scope="module")
def config(root):
    return load_config(str(root / "c.py"), [])


@pytest.fixture(scope="module")
def run(root, config):
    """A run that encodes in its step."""
    train(config, root / "run", progress=False, peak=1e9)
    return root / "run"


@pytest.fixture(scope="module")
def run_apart(root, config):
    """The same run on precomputed latents."""
    data = dataclasses.replace(config.data, source="latents", path=str(root / "latents"), autoencoder=None)
    train(dataclasses.replace(config, data=data), root / "apart", progress=False, peak=1e9)
    return root / "apart"


@pytest.mark.slow
def test_encoding_in_the_step_makes_the_updates_of_precomputed_latents(config, run, run_apart):
    (_, _, inside, step), (_, _, apart, _) = (load_run(folder) for folder in (run, run_apart))
    start = init_state(config).params
    assert step == 5
    moved = 0.0
    for (path, a), b, before in zip(leaves_with_path(inside), *map(jax.tree.leaves, (apart, start)), strict=True):
        if "qkv" in str(path) and "bias" in str(path):
            # Softmax is invariant to the bias of keys: its gradient is rounding error, which AdamW scales up.
            a, b = (np.delete(np.asarray(bias), -2, axis=-2) for bias in (a, b))
        else:
            moved = max(moved, float(np.abs(a - before).max()))
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(path))
    assert moved > 1e-2  # so that the agreement is not trivial
    rows, others = (read_metrics(folder / "metrics.csv") for folder in (run, run_apart))
    assert len(rows) == len(others) == 5
    for row, other in zip(rows, others, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
    # The FLOPs of an image are those of the flow on its latents, in both runs.
    shares = [table[-1]["mfu"] / table[-1]["images_per_second"] for table in (rows, others)]
    assert shares[0] > 0 and shares[0] == pytest.approx(shares[1], rel=1e-3)


def test_held_out_latents_score_alike_made_before_or_now(root, config, tmp_path):
    for split in ("train", "test"):  # the same pictures
        shutil.copytree(root / "latents", tmp_path / split)
    data = dataclasses.replace(config.data, source="latents", path=str(tmp_path), autoencoder=None)
    params = init_state(config).params
    scores = []
    for one in (config, dataclasses.replace(config, data=data)):
        source, _ = open_with_encoder(one, "train")
        snapshot = Snapshot(one, root, source, 0, abstract(one.flow)[0], params)
        scores.append(held_out_score(one)(snapshot)["held_out_bits_per_dim"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    # A new flow is the identity: the density of standard normal values is about 2.05 bits per dimension.
    assert 1.5 < scores[0] < 2.6


def test_nothing_of_the_autoencoder_is_trained_or_saved(root, config, run):
    encoder = load_encoder(config).over(None)
    batch = {
        "image": np.random.default_rng(1).integers(0, 256, (2, 4, 8, 8, 3)).astype(np.uint8),
        "label": np.zeros((2, 4), np.int32),
    }
    state, metrics = train_steps(config, 256, init_state(config), batch, 2, None, encoder)
    assert np.isfinite(metrics["loss"]).all()
    for name, value in load_autoencoder(root / "a.npz")[1].items():
        np.testing.assert_array_equal(encoder.params[name], value)  # still there, and the same
    assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(lambda: init_state(config)))
    metadata = b"".join(path.read_bytes() for path in (run / "checkpoints").rglob("*METADATA"))
    assert b"prior_variance" in metadata or b"proj_in" in metadata
    assert b"basis" not in metadata


def test_the_table_of_the_flow_cuts_it_too():
    assert partition_spec("basis", 2) == ("fsdp", None)
    assert partition_spec("mean", 1) == partition_spec("std", 1) == (None,)


def test_clips_are_encoded_frame_by_frame():
    rng = np.random.default_rng(0)
    autoencoder, params = fit_patch_pca(rng.uniform(-1, 1, (9, 8, 8, 1)), 2, 3)
    encoder = Frozen(autoencoder, params)
    clips = rng.integers(0, 17, (2, 3, 8, 6, 1)).astype(np.uint8)
    found = encoder.latents(jnp.asarray(clips), 17)
    assert found.shape == (2, 3, 4, 3, 3) and found.dtype == jnp.float32
    np.testing.assert_allclose(found[1, 2], encoder.latents(clips[1:, 2], 17)[0], atol=1e-5)
    np.testing.assert_allclose(found, autoencoder.encode(params, clips / np.float32(8) - 1), atol=1e-4)


def test_what_is_drawn_is_decoded_by_the_same_file(root, config):
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    pixels = np.clip(decode_by(root / "a.npz", x), -1, 1)
    shown = to_pixels(x, config.data)
    assert shown.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(shown, (pixels + 1) * 127.5, atol=0.51)


def test_its_data_are_shown_as_pixels(root, capsys):
    assert main(["data", "--config", str(root / "c.py"), "--seconds", "0"]) == 0
    output = capsys.readouterr().out
    assert "8x8x3" in output and "a.npz to latents of 4x4x4" in output


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "noise must be 'gaussian' with an autoencoder, got 'uniform'"),
        ({"noise": "gaussian", "noise_std": 0.1, "warp": 0.5}, "warp must be 0 with an autoencoder, got 0.5"),
        (
            {"noise": "gaussian", "noise_std": 0.1, "source": "latents", "path": "p"},
            "autoencoder must be None for latents, which are encoded already, got 'a.npz'",
        ),
    ],
)
def test_configurations_that_cannot_be(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        DataConfig(autoencoder="a.npz", **fields)


def test_data_that_do_not_fit_are_refused(root, config, tmp_path):
    def refused(sentence, **changes):
        data = dataclasses.replace(config.data, **changes)
        with pytest.raises(ValueError, match=sentence):
            train(dataclasses.replace(config, data=data), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()

    for name, sizes in (("coarse", (4, 3, 4)), ("grey", (2, 1, 4)), ("narrow", (2, 3, 2))):
        autoencoder = PatchPCA(*sizes)
        values = {"mean": np.zeros(autoencoder.dim), "basis": np.eye(autoencoder.dim, sizes[2])}
        save_autoencoder(tmp_path / f"{name}.npz", autoencoder, values | {"std": np.ones(sizes[2])})
    refused("autoencoder gone.npz does not exist", autoencoder="gone.npz")
    refused(r"must fit the latents of train, \[2, 2, 4\], got \[4, 4, 4\]", autoencoder=str(tmp_path / "coarse.npz"))
    refused("must have 1 channels and sides", autoencoder=str(tmp_path / "grey.npz"))
    refused("flow.channels must be the 2 channels of the latents", autoencoder=str(tmp_path / "narrow.npz"))
    latents = dataclasses.replace(config.data, source="latents", path=str(root / "latents"), autoencoder=None)
    source = open_with_encoder(dataclasses.replace(config, data=latents), "train")[0]
    with pytest.raises(ValueError, match="must contain pixels to be encoded, got latents"):
        open_with_encoder(config, "train", source)


@pytest.mark.parametrize("command", [["evaluate"], ["score", "--out", "scores"]])
def test_bits_of_latents_are_not_those_of_pixels(run, capsys, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--workdir", str(run)]) == 2
    assert "must be a run on pixels of one shape, whose bits/dim compare, got the latents of" in capsys.readouterr().err


@pytest.mark.slow
def test_quality_of_pictures_that_are_decoded(root, run, run_apart, tmp_path, monkeypatch, capfd):
    """Samples are compared with real images in pixels: 8 x 8 of latents that are 4 x 4."""
    (tmp_path / "my_eight.py").write_text(
        "def look(images):\n    assert images.shape[1:] == (8, 8, 3)\n"
        "    return images.reshape(len(images), -1)[:, :4]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    argv = ["evaluate", "--workdir", str(run), "--features", "my_eight:look", "--num-samples", "16", "--out", "q"]
    read = []
    monkeypatch.setattr(storage, "_load_linear", recorded(storage._load_linear, read))
    assert main([*argv, "--metrics", "fid,pr"]) == 0
    assert len(read) <= 3  # for the samples, and to open each split of the data
    figures = json.loads((tmp_path / "q" / "quality.json").read_text())
    assert figures["rows"][0]["fid"] > figures["floor"]["fid"] == pytest.approx(0.0, abs=1e-6)  # equal splits
    assert figures["floor"]["precision"] == figures["floor"]["recall"] == 1.0
    capfd.readouterr()
    for more, sentence in (
        (["--metrics", "fid,bpd"], "must be a run on pixels"),
        (["--metrics", "fid", "--features", "digits"], "reads grey images with sides that are multiples of 8"),
        (["--metrics", "fid", "--decoder", str(root / "a.npz"), "--seed", "1"], "contains samples whose"),
        (["--metrics", "fid", "--decoder", "gone.npz"], "gone.npz"),
    ):
        assert main([*argv, *more]) == 2
        assert sentence in capfd.readouterr().err
    plan = tmp_path / "q" / "plan.json"  # as if another decoder had lain at the same path
    plan.write_text(re.sub('"decoder_weights": "[0-9a-f]{16}"', '"decoder_weights": "0"', plan.read_text()))
    assert main([*argv, "--metrics", "fid"]) == 2
    assert "samples whose decoder_weights is '0', not" in capfd.readouterr().err

    # Latents that were computed before: the real pictures are named, as an array or as files.
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with np.load(root / "train.npz") as file:
        for place, image in enumerate(file["image"]):
            write_png(pictures / f"{place:02d}.png", image)
    apart = ["evaluate", "--workdir", str(run_apart), *argv[3:-1]]
    for name, real in (("file", root / "train.npz"), ("folder", pictures)):
        assert main([*apart, name, "--metrics", "fid", "--real", str(real)]) == 0
        found = json.loads((tmp_path / name / "quality.json").read_text())
        assert found["rows"][0]["fid"] == pytest.approx(figures["rows"][0]["fid"], rel=1e-2)
        assert found["reference"]["pictures"] == 12 and found["floor"] is None
    (tmp_path / "small.npz").write_bytes(b"none")
    capfd.readouterr()
    for more, sentence in (
        ([], "--real must name images to compare with"),
        (["--real", "gone"], "must be a folder of images or an .npz file, got gone"),
        (["--real", "small.npz"], "real small.npz must be an .npz file with `image`"),
        (["--real", str(pictures), "--reference", "test"], "are mutually exclusive, got both"),
    ):
        assert main([*apart, "none", "--metrics", "fid", *more]) == 2
        assert sentence in capfd.readouterr().err
