"""Folders that contain a flow, an autoencoder and a text encoder: images and videos from captions, end to end.

The flows are random and tiny, the frozen models those of the recordings: what is shown is that every part meets the
next in the shapes and units that it expects.
"""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import starflow_jax as sf
from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import load_config
from starflow_jax.flows.parameters import initialise
from starflow_jax.media import to_uint8, write_mp4
from starflow_jax.models.autoencoders import load_autoencoder
from starflow_jax.porting import to_torch
from starflow_jax.sampling.videos.video_plan import text_states
from starflow_jax.training.step.frozen_text import prompts

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
NEIGHBOURS = Path(__file__).parent / "goldens" / "neighbours"
CAPTION = "a corgi looks at the camera"


def assembled(folder, experiment, autoencoder, *overrides):
    """A model folder: tensors as the originals name them, ported, joined to the frozen models."""
    config = load_config(experiment, overrides)
    save_file(to_torch(initialise(config.flow, jax.random.key(3))[1]), folder / "flow.safetensors")
    options = [f"--config.{override}" for override in overrides]
    source = ["--from", str(folder / "flow.safetensors"), "--config", experiment]
    assert main(["port", *source, "--workdir", str(folder / "run"), *options]) == 0
    frozen = ["--autoencoder", autoencoder, "--text-encoder", str(NEIGHBOURS / "t5_encoder")]
    assert main(["port", "--assemble", str(folder / "model"), "--flow", str(folder / "run"), *frozen]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    experiment = f"{EXPERIMENTS / 'starflow_3b_t2i.py'}:tiny"
    return assembled(tmp_path_factory.mktemp("image"), experiment, str(NEIGHBOURS / "sd_vae"), "flow.text_dim=32")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    experiment = f"{EXPERIMENTS / 'starflow_v_7b.py'}:tiny"
    autoencoder = f"{NEIGHBOURS / 'wan22_vae' / 'weights.safetensors'}:0.6"
    sizes = ("flow.text_dim=32", "flow.channels=48", "flow.image_size=2")
    return assembled(tmp_path_factory.mktemp("video"), experiment, autoencoder, *sizes)


def draw(model, out, *options):
    figures = out.with_suffix(".json")
    common = ["--solver", "sequential", "--denoise", "none", "--out", str(out), "--json", str(figures)]
    assert main(["sample", "--model", str(model), "--caption", CAPTION, *common, *map(str, options)]) == 0
    return json.loads(figures.read_text())


def test_captions_of_the_released_video_model_name_rate_and_noise():
    config = load_config(str(EXPERIMENTS / "starflow_v_7b.py"), ["data.text_encoder=flan-t5-xl"])
    assert prompts(config, ["a corgi", ""]) == ["Noise Level 500:\nA video with 16 fps:\na corgi\n", ""]


def test_a_picture_of_a_caption(pictures, tmp_path):
    draw(pictures, tmp_path / "x.npz", "--num", 2)
    drawn = np.load(tmp_path / "x.npz")
    assert drawn["image"].shape == (2, 32, 32, 3) and drawn["image"].dtype == np.uint8
    autoencoder, params = load_autoencoder(NEIGHBOURS / "sd_vae")
    decoded = jax.jit(autoencoder.decode)(params, drawn["x"])  # compiled, as the command does: equal to the last bit
    np.testing.assert_array_equal(drawn["image"], to_uint8(np.clip(np.asarray(decoded), -1, 1)))


def test_the_public_interface_draws_the_same_picture(pictures, tmp_path):
    draw(pictures, tmp_path / "x.npz", "--num", 2)
    run = sf.from_pretrained(pictures)
    samples = sf.sample(run, 2, captions=CAPTION, solver="sequential", denoise="none")
    np.testing.assert_array_equal(samples.images, np.load(tmp_path / "x.npz")["image"])
    expected = jax.jit(run.flow.log_prob)(samples.samples.noisy, text_states(run.config, [CAPTION] * 2))
    np.testing.assert_allclose(sf.log_prob(run, samples), expected, rtol=1e-5)
    np.testing.assert_allclose(sf.log_prob(run, samples.samples.noisy, [CAPTION] * 2), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def clip(videos, tmp_path_factory):
    """Two videos of a caption: three latent frames, nine of pixels."""
    out = tmp_path_factory.mktemp("drawn") / "x.npz"
    figures = draw(videos, out, "--num", 2, "--frames", 9, "--fps", 16)
    return np.load(out), figures


def test_a_video_of_a_caption(clip):
    drawn, figures = clip
    assert drawn["video"].shape == (2, 9, 32, 32, 3) and drawn["x"].shape == (2, 3, 2, 2, 48)
    assert (figures["frames"], figures["given_frames"], figures["size"]) == (9, 0, [32, 32])
    autoencoder, params = load_autoencoder(Path(f"{NEIGHBOURS / 'wan22_vae' / 'weights.safetensors'}:0.6"))
    assert autoencoder.temporal_scale == 0.6
    whole = to_uint8(np.clip(np.asarray(autoencoder.decode(params, drawn["denoised"])), -1, 1))
    assert np.abs(whole.astype(int) - drawn["video"]).max() <= 1  # frame by frame, rounded


def test_the_public_interface_draws_the_same_video(videos, clip):
    run = sf.from_pretrained(videos)
    samples = sf.sample(run, 2, captions=CAPTION, frames=9, fps=16.0, solver="sequential", denoise="none")
    np.testing.assert_array_equal(samples.videos, clip[0]["video"])
    expected = sf.log_prob(run, samples.samples.x, samples.samples.text)
    np.testing.assert_allclose(sf.log_prob(run, samples), expected, rtol=1e-6)


@pytest.mark.slow  # test_streaming compares streams with whole videos
def test_a_streamed_video_is_the_same(videos, clip, tmp_path):
    draw(videos, tmp_path / "x.npz", "--num", 2, "--frames", 9, "--stream")
    streamed = np.load(tmp_path / "x.npz")["video"]
    assert np.abs(streamed.astype(int) - clip[0]["video"]).max() <= 1


@pytest.mark.slow
def test_a_picture_begins_a_video(videos, tmp_path):
    given = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(given).save(tmp_path / "first.png")
    figures = draw(videos, tmp_path / "x.npz", "--num", 1, "--frames", 9, "--image", tmp_path / "first.png")
    drawn = np.load(tmp_path / "x.npz")
    assert figures["given_frames"] == 1
    np.testing.assert_array_equal(drawn["video"][0, 0], given)
    autoencoder, params = load_autoencoder(NEIGHBOURS / "wan22_vae" / "weights.safetensors")
    latent = np.asarray(autoencoder.encode(params, given[None].astype(np.float32) / 127.5 - 1))
    # what the flow was given is this latent with the training noise, of 0.5
    assert np.abs(drawn["x"][0, 0] - latent[0]).std() < 0.6


@pytest.mark.slow
def test_options_together(videos, tmp_path):
    """A folder of videos of another shape, denoised, guided, the likeliest of several, longer than a window."""
    common = ["sample", "--model", str(videos), "--caption", CAPTION, "--json", str(tmp_path / "x.json")]
    options = "--candidates 2 --keep 1 --denoise score --guidance 2 --frames 17 --window 3 --context 2 --aspect 16:9"
    assert main([*common, *options.split(), "--solver", "jacobi", "--out", str(tmp_path / "x")]) == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    assert (figures["frames"], figures["size"], figures["fps"]) == (17, [32, 48], 16)
    assert len(list((tmp_path / "x").glob("*.mp4"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--continue", "--video"])
def test_a_clip_begins_a_video(option, videos, tmp_path):
    source = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3)).astype(np.uint8)
    write_mp4(tmp_path / "source.mp4", source, fps=16)
    more = ["--frames", 17] if option == "--continue" else []
    figures = draw(videos, tmp_path / "x.npz", "--num", 1, option, tmp_path / "source.mp4", *more)
    drawn = np.load(tmp_path / "x.npz")
    # all nine frames, three of the flow, are given; a translation has as many latent frames again
    assert figures["given_frames"] == 9 and drawn["video"].shape[1] == (17 if option == "--continue" else 21)
    assert drawn["x"].shape[1] == (5 if option == "--continue" else 6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--frames", "8"], "--frames must be 1 plus a multiple of 4 for this autoencoder, got 8"),
        (["--workdir", "x"], "give either --workdir, the folder of a run, or --model"),
    ],
)
def test_bad_requests(options, sentence, videos, tmp_path, capsys):
    assert main(["sample", "--model", str(videos), "--out", str(tmp_path / "x.mp4"), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("autoencoder", {"kind": "wan2.2", "path": "../flow.safetensors"}),
        ("autoencoder", {"kind": "wan2.2", "path": "autoencoder.safetensors", "temporal_scale": "0.6"}),
        ("text_encoder", {"kind": "huggingface", "path": "text_encoder", "temporal_scale": 0.6}),
        ("flow", "/etc"),
    ],
)
def test_bad_model_files(part, value, videos, tmp_path, capsys):
    content = json.loads((videos / "model.json").read_text())
    bad = tmp_path / "model"
    shutil.copytree(videos, bad, copy_function=os.link, ignore=shutil.ignore_patterns("model.json"))
    (bad / "model.json").write_text(json.dumps(content | {part: value}))
    assert main(["sample", "--model", str(bad), "--out", str(tmp_path / "x.mp4")]) == 2
    assert f"{part} of " in capsys.readouterr().err
