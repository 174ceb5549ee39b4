"""`starflow score` and what it computes: clips of every length, their noise, files, refusals."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_flows import random_flow

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig, ExperimentConfig, FlowConfig, TextConfig, TrainConfig
from starflow_jax.data import MovingDigits
from starflow_jax.data.sources.moving_digits import VOCABULARY
from starflow_jax.evaluation.likelihood import video_scores as surprise
from starflow_jax.evaluation.likelihood.video_scores import Clip, file_pixels, mean_per_frame, score_clips
from starflow_jax.flows.bits import bits_per_dim
from starflow_jax.flows.parameters import split
from starflow_jax.media import write_video
from starflow_jax.training import Checkpoints, init_state
from starflow_jax.training.checkpoints.workdir import claim_workdir
from starflow_jax.training.step.inputs import noisy_pixels, word_encoder

VIDEO = ExperimentConfig(
    name="clips",
    flow=FlowConfig(
        channels=1, image_size=16, patch_size=4, width=20, num_blocks=2, layers_per_block=1, head_dim=20, rope=True,
        sos=True, text_dim=len(VOCABULARY), text_length=6, cond_top_only=True, scale="softplus", soft_clip=4.0,
        order="L2R", temporal_causal=True, shallow_local=True,
    ),
    data=DataConfig(source="moving_digits", frames=4, clips=9, test_clips=5, noise="gaussian", noise_std=0.3),
    text=TextConfig(VOCABULARY),
    train=TrainConfig(steps=1, batch_size=2, lr=1e-3),
)  # fmt: skip
STILL = ExperimentConfig(
    name="stills",
    flow=FlowConfig(
        family="tarflow", channels=1, image_size=8, patch_size=4, width=16, num_blocks=2, layers_per_block=1,
        head_dim=8, num_classes=10,
    ),
    data=DataConfig(),
    train=TrainConfig(steps=1, batch_size=2, lr=1e-3),
)  # fmt: skip
KEY = jax.random.key(4)
SOURCE = MovingDigits("test", frames=4, clips=3)


@pytest.fixture(scope="module")
def flow():
    return random_flow(VIDEO.flow)


def clip(place, pixels=None):
    text = np.asarray(word_encoder(VIDEO).states(SOURCE[place]["text"][None]))[0]
    return Clip(f"clip {place}", SOURCE.caption(place), SOURCE[place]["image"] if pixels is None else pixels, 17, text)


def test_bits_are_those_of_the_flow_on_noisy_clips(flow):
    """Against the flow's own likelihood of the noise that the key, the draw and the place give."""
    clips = [clip(place) for place in range(3)]
    found = score_clips(split(flow)[1], VIDEO, clips, KEY, draws=2, batch_size=2)
    x = np.stack(
        [
            noisy_pixels(jax.random.fold_in(jax.random.fold_in(KEY, draw), place), c.pixels, 17, VIDEO.data)
            for draw in range(2)
            for place, c in enumerate(clips)
        ]
    )
    cond = jnp.stack([c.cond for c in clips] * 2)
    nats = np.asarray(jax.jit(flow.log_prob)(x, cond), np.float64).reshape(2, 3)
    expected = bits_per_dim(nats, x[0].size, 17).mean(axis=0)
    np.testing.assert_allclose([of_clip.bits_per_dim for of_clip in found], expected, rtol=1e-5)
    assert [of_clip.tokens.shape for of_clip in found] == [(2, 4, 4, 4)] * 3
    for of_clip in found:
        assert of_clip.frames.mean() == pytest.approx(of_clip.bits_per_dim)
    mean, error, count = mean_per_frame(found)[1]
    values = [of_clip.frames[1] for of_clip in found]
    assert (mean, count) == (pytest.approx(np.mean(values)), 3)
    assert error == pytest.approx(np.std(values, ddof=1) / 3**0.5)


def test_clips_of_every_length_share_one_program(flow):
    params, long = split(flow)[1], np.concatenate([SOURCE[0]["image"]] * 2)
    score_clips(params, VIDEO, [clip(0)], KEY, draws=1)
    programs = surprise._scores._cache_size()
    for frames in (1, 2, 3, 5, 7):
        found = score_clips(params, VIDEO, [clip(0, long[:frames])], KEY, draws=1, batch_size=1)[0]
        assert found.tokens.shape == (1, frames, 4, 4) and np.isfinite(found.tokens).all()
    assert surprise._scores._cache_size() == programs


def test_without_noise_windows_are_conditionals_given_their_context(flow):
    """Frame 4 of six, scored with two frames of context, is frame 2 of the clip that starts at frame 2."""
    quiet = dataclasses.replace(VIDEO, data=dataclasses.replace(VIDEO.data, noise_std=1e-12))
    params, long = split(flow)[1], np.concatenate([SOURCE[0]["image"], SOURCE[0]["image"][::-1]])[:6]
    whole = score_clips(params, quiet, [clip(0, long)], KEY, draws=1, batch_size=1, context=2)[0].tokens[0]
    first = score_clips(params, quiet, [clip(0, long[:4])], KEY, draws=1, batch_size=1)[0].tokens[0]
    later = score_clips(params, quiet, [clip(0, long[2:])], KEY, draws=1, batch_size=1)[0].tokens[0]
    np.testing.assert_allclose(whole[:4], first, rtol=1e-5)
    np.testing.assert_allclose(whole[4:], later[2:], rtol=1e-5)


def test_files_keep_their_bytes_under_gaussian_noise_and_take_levels_otherwise():
    frames = np.rint(SOURCE[0]["image"] * (255 / 16)).astype(np.uint8)
    kept, levels = file_pixels(frames, VIDEO.data)
    np.testing.assert_array_equal(kept, frames)
    assert levels == 256
    found, levels = file_pixels(frames, dataclasses.replace(VIDEO.data, noise="uniform", noise_std=0.0))
    np.testing.assert_array_equal(found, SOURCE[0]["image"])
    assert levels == 17


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs with new weights, video files and what is not one."""
    home = tmp_path_factory.mktemp("score")
    for name, config in {"run": VIDEO, "stills": STILL}.items():
        claim_workdir(home / name, config)
        with Checkpoints(home / name, config, write=True) as checkpoints:
            checkpoints.save(init_state(config), {})
    frames = np.rint(SOURCE[0]["image"] * (255 / 16)).astype(np.uint8)
    write_video(home / "a.gif", frames, fps=8, scale=4)
    write_video(home / "long.mp4", np.concatenate([frames, frames]), fps=8, scale=4)
    (home / "not.mp4").write_text("dear reader")
    (home / "taken").mkdir()
    (home / "taken" / "letter.txt").write_text("dear reader")
    return home


def test_held_out_clips(home, tmp_path, capsys):
    out, figures = tmp_path / "out", tmp_path / "x.json"
    argv = ["score", "--workdir", str(home / "run"), "--num", "3", "--out", str(out), "--json", str(figures)]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "| test 1 |" in output and SOURCE.caption(1) in output and "Gaussian noise of 0.3" in output
    with (out / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbers = json.loads(figures.read_text())
    assert len(rows) == 3 * 4 and len(numbers["clips"]) == 3 and len(numbers["frames"]) == 4
    assert float(rows[5]["bits_per_dim"]) == pytest.approx(numbers["clips"][1]["frames"][1], abs=1e-6)
    assert numbers["clips"][1]["caption"] == SOURCE.caption(1)
    assert f"{numbers['bits_per_dim']['mean']:.4f}" in output
    with np.load(out / "tokens.npz") as maps:
        assert maps["clip_2"].shape == (4, 4, 4)
        assert maps["clip_2"].mean() == pytest.approx(numbers["clips"][2]["bits_per_dim"])
    for name in ("frames.png", "surprise.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200


def test_video_files_of_any_length(home, tmp_path, capsys):
    videos = ["--video", str(home / "a.gif"), "--video", str(home / "long.mp4"), "--caption", SOURCE.caption(0)]
    argv = ["score", "--workdir", str(home / "run"), "--out", str(tmp_path / "out"), "--draws", "1", *videos]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "a.gif" in output and "long.mp4" in output and "| 7     |" in output
    assert len((tmp_path / "out" / "frames.csv").read_text().splitlines()) == 1 + 4 + 8


def test_still_images(home, tmp_path, capsys):
    argv = ["score", "--workdir", str(home / "stills"), "--num", "4", "--draws", "1", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    output = capsys.readouterr().out
    assert "| test 3 | class " in output and "s.e. (clips)" not in output and "Gaussian" not in output
    assert (tmp_path / "out" / "surprise.png").is_file()


RUN = ["--workdir", "run", "--out", "new"]
REFUSALS = {
    "no run": (["--workdir", "gone", "--out", "new"], "contains no training run"),
    "out is taken": (["--workdir", "run", "--out", "taken"], "--out must be an empty or a new folder"),
    "caption of data": ([*RUN, "--caption", "a seven moving left"], "--caption requires --video"),
    "both": ([*RUN, "--video", "a.gif", "--num", "3"], "--num applies only to clips of the run's data"),
    "two captions for three": (
        [*RUN, *["--video", "a.gif"] * 3, *["--caption", "a"] * 2],
        "--caption must be given once, or once for each --video, got 2 for 3",
    ),
    "unknown word": ([*RUN, "--video", "a.gif", "--caption", "a sevn"], "unknown word 'sevn'; did you mean seven?"),
    "no file": ([*RUN, "--video", "gone.mp4"], "gone.mp4 cannot be read"),
    "no video": ([*RUN, "--video", "not.mp4"], "not.mp4 cannot be read"),
    "stills": (["--workdir", "stills", "--out", "new", "--video", "a.gif"], "--video needs a run on video"),
    "context of stills": (["--workdir", "stills", "--out", "new", "--context", "1"], "context must be 0"),
    "long context": ([*RUN, "--context", "4"], "context must be below the 4 frames of the run, got 4"),
    "no draws": ([*RUN, "--draws", "0"], "--draws must be an integer from 1 to 1000000, got '0'"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, home, monkeypatch, capfd):
    argv, message = REFUSALS[name]
    monkeypatch.chdir(home)
    before = sorted(home.rglob("*"))
    assert main(["score", *argv]) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("starflow: ")
    assert message in captured.err and sorted(home.rglob("*")) == before


def test_frames_that_see_later_ones_have_no_conditionals():
    backwards = dataclasses.replace(VIDEO, flow=dataclasses.replace(VIDEO.flow, temporal_causal=False, order="R2L"))
    with pytest.raises(ValueError, match=r"with flow\.temporal_causal=True"):
        score_clips({}, backwards, [clip(0)], KEY, draws=1)
