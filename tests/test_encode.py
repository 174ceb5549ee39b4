"""Frozen autoencoders, latents that are computed once, and runs that are trained on them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from joined_processes import run_joined
from picture_files import encoded, picture, recorded, write_clip, write_photos
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.data import train_loader
from starflow_jax.data.decoding.bad_examples import BadExample
from starflow_jax.data.sources.latents import Records, open_latents
from starflow_jax.models.autoencoders import (
    PatchPCA,
    decode_latents,
    fit_patch_pca,
    load_autoencoder,
    save_autoencoder,
    storage,
)
from starflow_jax.models.text.words import WordEncoder
from starflow_jax.training.step.inputs import noisy_pixels, open_source

WORDS = ("a", "cat", "dog")
CONFIG = """
from ml_collections import ConfigDict

def get_config(variant="pixels"):
    flow = dict(family="starflow", rope=True, sos=True, channels=6, image_size=8, patch_size=2, width=20, num_blocks=1,
                layers_per_block=1, head_dim=20, text_dim=3, text_length=4)
    data = dict(source="images", path={path!r}, noise="gaussian", noise_std=0.1, label_drop=0.5, flip=0.5,
                aspect_ratios=("1:1", "2:1"))
    if variant == "clips":
        data = dict(source="videos", path={path!r}, noise="gaussian", noise_std=0.1, frames=3, fps=8.0)
    train = dict(steps=3, batch_size=2, lr=1e-3, checkpoint_every=2, log_every=1)
    return ConfigDict(dict(name="l", flow=flow, data=data, text=dict(vocabulary={words!r}), train=train,
                           sample=dict(num=2)))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two shapes in two classes, one of them broken; an experiment file; and its encoded latents."""
    root = tmp_path_factory.mktemp("encode")
    write_photos(root / "photos", {"cat": [(32, 32)] * 5, "dog": [(24, 48)] * 4})
    (root / "photos" / "dog" / "half.png").write_bytes(encoded(picture(0, 24, 48))[:200])
    (root / "c.py").write_text(CONFIG.format(path=str(root / "photos"), words=WORDS))
    arguments = ["--config", str(root / "c.py"), "--fit-patch-pca", "4:6", "--out", str(root / "latents"), "--quiet"]
    assert main(["encode", *arguments, "--json", str(root / "e.json"), "--dtype", "float32", "--batch-size", "3"]) == 0
    return root


def latent_config(folder, *overrides):
    fields = ["--config.data.source=latents", f"--config.data.path={folder / 'latents'}", *overrides]
    return load_config(str(folder / "c.py"), fields)


def test_principal_components_are_the_best_linear_code():
    rng = np.random.default_rng(0)
    pictures = [picture(seed, 16, 24).astype(np.float32) / 127.5 - 1 for seed in range(12)]
    errors = []
    for channels in (1, 4, 12):
        autoencoder, params = fit_patch_pca(pictures, 2, channels)
        latents = np.asarray(autoencoder.encode(params, np.stack(pictures)))
        assert latents.shape == (12, 8, 12, channels)
        flat = latents.reshape(-1, channels)
        np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-3)
        varied = params["std"] > 1e-3  # directions that these smooth pictures have
        np.testing.assert_allclose(flat.std(axis=0)[varied], 1, atol=1e-2)
        back = np.asarray(autoencoder.decode(params, latents))
        errors.append(float(np.mean((back - np.stack(pictures)) ** 2)))
        # any other directions leave more of the pictures out
        other = dict(params, basis=np.linalg.qr(rng.normal(size=params["basis"].shape))[0].astype(np.float32))
        worse = autoencoder.decode(other, autoencoder.encode(other, np.stack(pictures)))
        assert channels == 12 or np.mean((np.asarray(worse) - np.stack(pictures)) ** 2) > 2 * errors[-1]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-9  # as many channels as values: nothing is lost


def test_autoencoder_files_hold_arrays_only(tmp_path):
    autoencoder, params = fit_patch_pca([np.random.default_rng(0).uniform(-1, 1, (8, 8, 1))], 2, 3)
    save_autoencoder(tmp_path / "a.npz", autoencoder, params)
    loaded, values = load_autoencoder(tmp_path / "a.npz")
    assert loaded == autoencoder == PatchPCA(2, 1, 3)
    for name in params:
        np.testing.assert_array_equal(values[name], params[name])
    for name, change, sentence in (
        ("cut", (tmp_path / "a.npz").read_bytes()[:150], "cannot be read"),
        ("pickle", None, "cannot be read"),
    ):
        path = tmp_path / f"{name}.npz"
        if change is None:
            np.savez(path, kind=np.array([{}], object), stride=1, pixel_channels=1, channels=1)
        else:
            path.write_bytes(change)
        with pytest.raises(ValueError, match=sentence):
            load_autoencoder(path)
    save_autoencoder(tmp_path / "b.npz", autoencoder, params | {"std": -params["std"]})
    with pytest.raises(ValueError, match="must have std above 0"):
        load_autoencoder(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="must contain more than 12 patches of 2, got 4"):
        fit_patch_pca([np.zeros((4, 4, 3))], 2, 3)


def test_latents_are_those_of_the_pictures(folder):
    config = latent_config(folder)
    source = open_source(config.data, "train", flow=config.flow, text=config.text)
    assert source.levels == 0
    shapes = {part.source.shape: len(part.source) for part in source.components}
    assert shapes == {(8, 8, 6): 5, (6, 12, 6): 4}  # pictures of 32 x 32 and of 24 x 48, 4 x 4 pixels each
    autoencoder, params = load_autoencoder(folder / "latents" / "autoencoder.npz")
    with Image.open(folder / "photos" / "cat" / "2.png") as image:
        pixels = np.asarray(image).astype(np.float32) / 127.5 - 1
    example = source.components[0].source[2]
    np.testing.assert_allclose(example["image"], autoencoder.encode(params, pixels), atol=1e-5)
    assert example["label"] == 0 and example["caption"] == "a cat"
    encoder = WordEncoder(WORDS, 4)
    np.testing.assert_array_equal(example["text_states"], encoder.states(encoder.ids(["a cat"]))[0])
    shown = decode_latents(example["image"], folder / "latents")
    assert peak_signal_noise_ratio(pixels, shown, data_range=2) > 30
    report = json.loads((folder / "e.json").read_text())
    assert (report["count"], report["skipped"]) == (9, 1)
    assert [name.rpartition("/")[2] for name in report["skipped_names"]] == ["half.png"]


def test_text_is_dropped_as_often_as_asked_and_to_the_empty_caption(folder):
    config = latent_config(folder)
    source = open_source(config.data, "train", flow=config.flow, text=config.text)
    loader = train_loader(source, 40, seed=0)
    states = np.concatenate([next(loader)["text_states"] for _ in range(5)])
    dropped = ~states.any(axis=(1, 2))
    assert 60 < dropped.sum() < 140  # of 200, half
    scored = source.components[0].source[0]["text_states"]
    assert scored.any()


def test_noise_is_added_to_latents_as_they_are():
    import jax

    from starflow_jax.core.config import DataConfig

    config = DataConfig(noise="gaussian", noise_std=0.5)
    latents = np.full((100, 4, 4, 2), 3.0, np.float32)
    noisy = np.asarray(noisy_pixels(jax.random.key(0), latents, 0, config))
    assert noisy.mean() == pytest.approx(3.0, abs=0.05) and noisy.std() == pytest.approx(0.5, abs=0.02)


@pytest.fixture(scope="module")
def run(folder):
    """A run on latents."""
    arguments = ["--config", str(folder / "c.py"), "--config.data.source=latents", "--quiet"]
    arguments += [f"--config.data.path={folder / 'latents'}", "--workdir", str(folder / "run")]
    assert main(["train", *arguments]) == 0
    return folder / "run"


def test_a_run_on_latents_draws_pixels(run, folder, capsys, monkeypatch):
    drawn, read = folder / "drawn.png", []
    monkeypatch.setattr(storage, "_load_linear", recorded(storage._load_linear, read))
    assert main(["sample", "--workdir", str(run), "--num", "2", "--out", str(drawn)]) == 0
    assert len(read) == 1  # large autoencoders are read once
    with Image.open(drawn) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.ndim == 3 and pixels.shape[0] % 32 == 0  # decoded: 4 x 4 pixels a latent
    assert main(["evaluate", "--workdir", str(run), "--split", "train"]) == 2
    assert "must be a run on pixels of one shape, whose bits/dim compare, got latents" in capsys.readouterr().err


def test_what_will_be_seen_of_latents_and_how_fast(run, folder, capsys):
    sheet, report = folder / "sheet.png", folder / "data.json"
    arguments = ["--config", str(folder / "c.py"), "--config.data.source=latents", "--seconds", "0.1"]
    arguments += [f"--config.data.path={folder / 'latents'}", "--out", str(sheet), "--json", str(report)]
    assert main(["data", *arguments, "--workdir", str(run)]) == 0
    output = capsys.readouterr().out
    assert "2 shapes of batches, for each of which a program is compiled" in output and "the run in" in output
    assert "data.flip=0.5 has no effect: latents are those of whole images, cropped at the centre" in output
    figures = json.loads(report.read_text())
    assert [part["shape"] for part in figures["parts"]] == [[8, 8, 6], [6, 12, 6]]
    assert figures["ratio"] == pytest.approx(figures["examples_per_second"] / figures["needed_per_second"])
    with Image.open(sheet) as image:
        assert np.asarray(image.convert("RGB")).std() > 20


def test_clips_are_encoded_frame_by_frame(folder, tmp_path):
    (tmp_path / "v").mkdir()
    write_clip(tmp_path / "v" / "a.mp4", 12)
    (tmp_path / "v" / "a.txt").write_text("a cat")
    overrides = [f"--config.data.path={tmp_path / 'v'}"]
    arguments = ["--config", f"{folder / 'c.py'}:clips", *overrides, "--out", str(tmp_path / "l"), "--quiet"]
    given = ["--autoencoder", str(folder / "latents" / "autoencoder.npz")]
    assert main(["encode", *arguments, *given]) == 0
    source = open_latents(tmp_path / "l", frames=2, drop_first=1.0)
    whole = open_latents(tmp_path / "l", frames=3)
    assert whole[0]["image"].shape == (3, 8, 8, 6)
    late = source.draw(0, np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(late, whole[0]["image"][1:])
    with pytest.raises(ValueError, match="frames must be at most the 3 of the latents"):
        open_latents(tmp_path / "l", frames=3, drop_first=0.5)


def test_records_are_read_as_they_were_written():
    records = Records("float16", 5, length=4, dim=3)
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(2, 3, 2)).astype(np.float16).astype(np.float32)
    states = np.zeros((4, 3), np.float32)
    states[:2] = 1.0
    data = records.pack(latent, 3, states, "a cat \N{CAT FACE}")
    found, label, text, caption = records.unpack(data, (2, 3, 2))
    np.testing.assert_array_equal(found, latent)
    np.testing.assert_array_equal(text, states)
    assert (label, caption) == (3, "a cat \N{CAT FACE}")
    nan = records.pack(latent * np.nan, 3, states, "")
    for bad in (b"", data[:-1], data + b"x", b"\xff" * len(data), nan, records.pack(latent, 9, states, "")):
        with pytest.raises(ValueError, match=r"its (record|label|latent)"):
            records.unpack(bad, (2, 3, 2))


def test_damaged_latents_are_refused_or_skipped(folder, tmp_path):
    import shutil

    for name, damage, sentence in (
        ("no header", lambda path: (path / "header.json").unlink(), "have no header.json"),
        ("bad header", lambda path: (path / "header.json").write_text("{"), "header that cannot be read"),
        ("other", lambda path: (path / "header.json").write_text('{"format": "x"}'), "must be of format"),
        ("gone", lambda path: next(path.glob("*.array_record")).unlink(), "must contain latents-00"),
        ("cut", lambda path: next(path.glob("*.array_record")).write_bytes(b"1234" * 100), "latents"),
    ):
        path = tmp_path / name
        shutil.copytree(folder / "latents", path)
        damage(path)
        with pytest.raises(ValueError, match=sentence) as error:
            open_latents(path)
        assert "\n" not in str(error.value)
    escaping = tmp_path / "escaping"
    shutil.copytree(folder / "latents", escaping)
    header = json.loads((escaping / "header.json").read_text())
    header["buckets"][0]["files"] = ["../latents-000-00000.array_record"]
    (escaping / "header.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match="must be names in this folder"):
        open_latents(escaping)
    source = open_latents(folder / "latents").components[0].source
    short = dataclasses.replace(source, shape=(9, 8, 6))
    with pytest.raises(BadExample, match="its record has"):
        short[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fit-patch-pca", "4"], "--fit-patch-pca must be PATCH:CHANNELS, such as 8:16, got '4'"),
        (["--fit-patch-pca", "4:7"], "flow.channels must be the 7 channels of the latents, got 6"),
        (["--fit-patch-pca", "4:6", "--autoencoder", "a.npz"], "are mutually exclusive"),
        (["--autoencoder", "gone.npz"], "autoencoder gone.npz does not exist"),
        ([], "flow.channels must be 1 (grey) or 3 (RGB) to read images, got 6"),
        (["--config.data.source=latents", "--config.data.path=x", "--fit-patch-pca", "4:6"], "must be images or"),
        (["--config.data.path=gone", "--fit-patch-pca", "4:6"], "data folder gone does not exist"),
    ],
)
def test_encoding_that_cannot_be(folder, tmp_path, capsys, arguments, sentence):
    out = tmp_path / "out"
    assert main(["encode", "--config", str(folder / "c.py"), "--out", str(out), "--quiet", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_files_are_opened_once_and_not_handed_to_other_processes(folder):
    import pickle

    source = open_latents(folder / "latents").components[0].source
    assert dataclasses.replace(source, text_drop=0.5).reader() is source.reader()
    again = pickle.loads(pickle.dumps(source))
    assert again.reader() is not source.reader()
    np.testing.assert_array_equal(again[1]["image"], source[1]["image"])


MIXED = """
from ml_collections import ConfigDict

def get_config():
    flow = dict(family="starflow", rope=True, channels=6, image_size=8, patch_size=2, width=20, num_blocks=1,
                layers_per_block=1, head_dim=20)
    stills = dict(source="images", path={photos!r}, weight=3.0)
    clips = dict(source="videos", path={videos!r}, frames=3, fps=8.0, weight=1.0, batch_size=4)
    data = dict(source="mixture", mixture=(stills, clips), frames=3, noise="gaussian", noise_std=0.1)
    return ConfigDict(dict(name="m", flow=flow, data=data, train=dict(steps=3, batch_size=2, lr=1e-3)))
"""


def test_a_mixture_of_stills_and_clips_keeps_its_weights(folder, tmp_path):
    (tmp_path / "v").mkdir()
    for number in range(3):
        write_clip(tmp_path / "v" / f"{number}.mp4", 12)
    write_photos(tmp_path / "p", {"cat": [(32, 32)] * 4}, captions=False)
    (tmp_path / "m.py").write_text(MIXED.format(photos=str(tmp_path / "p"), videos=str(tmp_path / "v")))
    out, autoencoder = str(tmp_path / "l"), str(folder / "latents" / "autoencoder.npz")
    arguments = ["--config", str(tmp_path / "m.py"), "--out", out, "--autoencoder", autoencoder, "--quiet"]
    assert main(["encode", *arguments, "--limit", "6"]) == 0
    config = load_config(str(tmp_path / "m.py"), ["data.source=latents", f"data.path={out}", "data.mixture=()"])
    source = open_source(config.data, "train", flow=config.flow)
    parts = [(one.source.example_shape, len(one.source), one.weight, one.batch_size) for one in source.components]
    assert parts == [((8, 8, 6), 4, 3.0, None), ((3, 8, 8, 6), 2, 1.0, 4)]
    shapes = [next(loader)["image"].shape for loader in [train_loader(source, 2, seed=0)] for _ in range(8)]
    assert sorted(shapes) == [(2, 8, 8, 6)] * 6 + [(4, 3, 8, 8, 6)] * 2


@pytest.mark.slow
def test_two_processes_encode_as_one_does(folder, tmp_path):
    """Each into files of its own, the order that of one process, nothing left beside."""
    out = tmp_path / "l"
    arguments = ["--config", str(folder / "c.py"), "--out", str(out), "--json", str(tmp_path / "e.json"), "--quiet"]
    arguments += ["--autoencoder", str(folder / "latents" / "autoencoder.npz"), "--dtype", "float32"]
    found = run_joined(Path(__file__).parent / "command_of_a_process.py", tmp_path, 2, "encode", *arguments)
    assert [code for code, *_ in found] == [0, 0], found
    assert "latents" in found[0][1] and "latents" not in found[1][1].replace(str(folder), "")
    assert not list(tmp_path.glob(".l*"))
    alone, together = (open_latents(path) for path in (folder / "latents", out))
    assert len(alone) == len(together) == json.loads((tmp_path / "e.json").read_text())["count"] == 9
    for index in range(9):
        one, other = alone[index], together[index]
        np.testing.assert_allclose(one["image"], other["image"], atol=1e-5)
        assert (one["label"], one["caption"]) == (other["label"], other["caption"])
    files = [file.rpartition("/")[2] for part in together.components for file in part.source.files]
    assert files == [f"latents-00{part}-000{process}-00000.array_record" for part in (0, 1) for process in (0, 1)]

    # Where the reading of one fails, there is no folder, and no half of one.
    bad = [*arguments, "--config.data.aspect_ratios=()"]
    bad[bad.index(str(out))] = str(tmp_path / "other")
    found = run_joined(Path(__file__).parent / "command_of_a_process.py", tmp_path, 2, "encode", *bad, "FAIL:1")
    assert [code for code, *_ in found] == [2, 2], found
    assert "ended because process 1 failed: data cannot be read" in found[0][1]
    assert not list(tmp_path.glob("*other*")) and not list(tmp_path.glob(".other*"))
