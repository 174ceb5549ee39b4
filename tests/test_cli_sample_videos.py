"""`starflow sample` on a run on clips, and the likeliest of several candidates of either kind."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from random_flows import CLASSES, VIDEO, random_flow

from starflow_jax.cli.dispatch import main
from starflow_jax.cli.video_files import choose_scale, file_name
from starflow_jax.core.config import ExperimentConfig, build
from starflow_jax.flows.parameters import split
from starflow_jax.media import read_video, write_frames, write_gif, write_png
from starflow_jax.sampling.ranking import log_likelihoods
from starflow_jax.sampling.videos import video_sampling
from starflow_jax.sampling.videos.video_plan import text_states
from starflow_jax.training import Checkpoints, abstract_state
from starflow_jax.training.checkpoints.workdir import claim_workdir

FRAMES, SIDE = 4, 4
WORDS = ("(v2v)", "(extend)", "a", "one", "two", "left")


def video_config(words=WORDS):
    flow = dataclasses.asdict(VIDEO) | {
        "num_blocks": 2,
        "channels": 1,
        "text_length": 4,
        "text_dim": len(words),
        "patch_size": 2,
    }
    return build(
        ExperimentConfig,
        {
            "name": "tiny-video",
            "flow": flow,
            "text": {"vocabulary": words},
            "data": {"source": "moving_digits", "frames": FRAMES, "noise": "gaussian", "noise_std": 0.3},
            "train": {"steps": 1, "batch_size": 1, "lr": 1e-3},
            "sample": {"num": 1, "guidance": 1.0, "denoise": "none"},
        },
    )


def save_run(workdir, config, params=None):
    claim_workdir(workdir, config)
    params = split(random_flow(config.flow))[1] if params is None else params
    # Without compiling a program for the zeros that sampling never reads.
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), abstract_state(config)).replace(params=params)
    with Checkpoints(workdir, config, write=True) as checkpoints:
        checkpoints.save(state, {})
    return params


CONFIG = video_config()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("videos")
    save_run(home / "run", CONFIG)
    save_run(home / "silent", video_config(("a", "one", "two", "left")))
    still = {"name": "tiny", "flow": dataclasses.asdict(CLASSES), "data": {"label_drop": 0.1}}
    save_run(home / "still", build(ExperimentConfig, still | {"train": {"steps": 1, "batch_size": 1, "lr": 1e-3}}))
    clip = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 1), np.uint8)
    np.save(home / "clip.npy", clip)
    write_gif(home / "clip.gif", clip, fps=5, scale=2)
    write_frames(home / "clip", clip)
    write_png(home / "first.png", clip[0].repeat(3, axis=2), scale=3)
    (home / "captions.txt").write_text("a one\n\na zwei\n  two left  \n")
    (home / "bad.txt").write_text("drei\nvier\n")
    (home / "empty.txt").write_text(" \n")
    (home / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    (home / "broken.mp4").write_bytes(b"no video")
    return home


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


SAMPLE = ["sample", "--workdir", "run", "--guidance", "0"]


def test_a_caption_that_cannot_be_read_does_not_lose_the_others(here, tmp_path, capsys):
    argv = [*SAMPLE, "--caption", "captions.txt", "--num", "2", "--fps", "12"]
    assert main([*argv, "--out", str(tmp_path / "videos"), "--json", str(tmp_path / "x.json")]) == 0
    output = capsys.readouterr()
    assert (
        output.err.count("\n") == 1
        and "skipped caption 2 of 3: caption 'a zwei' contains the unknown word" in output.err
    )
    assert "4 videos, 16 new frames" in output.out
    names = ["0-a-one.mp4", "1-a-one.mp4", "2-two-left.mp4", "3-two-left.mp4"]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == names
    read = read_video(tmp_path / "videos" / names[3])
    assert read.frames.shape == (FRAMES, 128, 128, 3) and read.fps == 12
    figures = json.loads((tmp_path / "x.json").read_text())
    assert [video["file"] for video in figures["videos"]] == names
    assert [video["place"] for video in figures["videos"]] == [0, 1, 4, 5]  # as if none had been left out
    assert [video["caption"] for video in figures["left_out"]] == ["a zwei"]
    assert figures["frames"] == FRAMES and figures["window"] is None and figures["images"] == 4
    assert figures["solver"] == {"name": "sequential"} and figures["new_frames_per_second"] > 0


def test_what_is_not_finite_is_written_only_when_asked(here, tmp_path, capsys):
    params = jax.tree.map(lambda a: np.full(a.shape, np.nan, a.dtype), split(random_flow(CONFIG.flow))[1])
    save_run(tmp_path / "broken", CONFIG, params)
    argv = ["sample", "--workdir", str(tmp_path / "broken"), "--guidance", "0", "--caption", "a one"]
    for name in ("x.mp4", "x.npz", "new"):
        assert main([*argv, "--out", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert "1 of 1 videos contain values that are not finite, so nothing is written" in said
        assert not (tmp_path / name).exists()
    assert main([*argv, "--out", str(tmp_path / "x.png"), "--write-non-finite"]) == 0
    assert "hold values that are not finite, shown as black or white" in capsys.readouterr().err
    assert (read_video(tmp_path / "x.png").frames == 0).all()


def test_the_same_videos_in_every_format(here, tmp_path):
    argv = [*SAMPLE, "--caption", "a one", "--caption", "two left", "--num", "2", "--scale", "4"]
    for name in ("x.npz", "x.gif", "x.png", "x.mp4"):
        scale = argv if name != "x.npz" else argv[:-2]
        assert main([*scale, "--out", str(tmp_path / "new" / name)]) == 0
    with np.load(tmp_path / "new" / "x.npz") as arrays:
        videos, captions = arrays["video"], list(arrays["caption"])
    assert videos.shape == (4, FRAMES, SIDE, SIDE, 1) and captions == ["a one", "a one", "two left", "two left"]
    grid = read_video(tmp_path / "new" / "x.gif")
    assert abs(grid.fps - 8) < 0.5  # of the grid of 2 x 2, each pixel 4 x 4
    np.testing.assert_array_equal(grid.frames[:, 16::4, ::4][:, :, :4], videos[2])
    strip = read_video(tmp_path / "new" / "x.png").frames[0]
    np.testing.assert_array_equal(strip[::4, ::4][4:8, 8:12], videos[1, 2])
    assert read_video(tmp_path / "new" / "x.mp4").frames.shape == (FRAMES, 32, 32, 3)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(
    ("argv", "given", "frames", "caption"),
    [
        (["--image", "first.png"], slice(0, 1), 4, "two left"),
        pytest.param(["--continue", "clip"], slice(0, 3), 4, "(extend) two left", marks=pytest.mark.slow),
        (["--continue", "clip.gif", "--context", "2", "--frames", "6"], slice(1, 3), 6, "(extend) two left"),
        (["--video", "clip.gif"], slice(0, 2), 4, "(v2v) two left"),
    ],
)
def test_videos_begin_with_what_was_given(argv, given, frames, caption, here, tmp_path, capsys):
    out, figures = tmp_path / "x.npz", tmp_path / "x.json"
    assert main([*SAMPLE, "--caption", "two left", *argv, "--out", str(out), "--json", str(figures)]) == 0
    with np.load(out) as arrays:
        video = arrays["video"][0]
        assert list(arrays["caption"]) == [caption]
    clip = np.load("clip.npy")[given]
    assert len(video) == frames
    np.testing.assert_array_equal(video[: len(clip)], clip)
    figures = json.loads(figures.read_text())
    assert figures["given_frames"] == len(clip)
    assert figures["fps"] == (5 if "clip.gif" in argv else 8)
    assert ("last 2 of the 3 frames" in capsys.readouterr().err) == ("--context" in argv)


def test_another_shape(here, tmp_path):
    argv = [*SAMPLE, "--aspect", "4:1", "--frames", "2", "--out", str(tmp_path / "x.npz")]
    assert main(argv) == 0
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["video"].shape == (1, 2, 2, 8, 1)


def test_the_likeliest_candidates_are_kept_in_order(here, tmp_path):
    argv = [*SAMPLE, "--caption", "a one", "--caption", "two left"]
    out, every = tmp_path / "best.npz", tmp_path / "all.npz"
    assert main([*argv, "--num", "3", "--out", str(every)]) == 0
    assert main([*argv, "--candidates", "3", "--keep", "2", "--out", str(out), "--json", str(tmp_path / "x.json")]) == 0
    with np.load(every) as arrays:
        x = arrays["x"]
    text = text_states(CONFIG, ["a one"] * 3 + ["two left"] * 3)
    scores = log_likelihoods(split(random_flow(CONFIG.flow))[1], CONFIG.flow, x, text)
    best = np.concatenate([3 * row + np.argsort(-scores[3 * row : 3 * row + 3])[:2] for row in range(2)])
    with np.load(out) as arrays:
        np.testing.assert_allclose(arrays["x"], x[best], atol=1e-5)
    videos = json.loads((tmp_path / "x.json").read_text())["videos"]
    assert [video["place"] for video in videos] == best.tolist()
    np.testing.assert_allclose([video["log_likelihood"] for video in videos], scores[best], rtol=1e-4)


def test_the_likeliest_pictures_of_every_class(here, tmp_path):
    argv = ["sample", "--workdir", "still", "--candidates", "4", "--keep", "2"]
    assert main([*argv, "--out", str(tmp_path / "x.npz"), "--json", str(tmp_path / "x.json")]) == 0
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["label"].tolist() == [0, 0, 1, 1, 2, 2] and arrays["image"].shape == (6, 4, 4, 1)
    figures = json.loads((tmp_path / "x.json").read_text())
    scores = np.reshape([kept["log_likelihood"] for kept in figures["kept"]], (3, 2))
    assert (scores[:, 0] >= scores[:, 1]).all() and figures["images"] == 12
    assert main([*argv, "--class", "1", "--out", str(tmp_path / "one")]) == 0
    assert len(list((tmp_path / "one").iterdir())) == 2


def test_long_videos_are_reported_with_their_window(here, tmp_path, monkeypatch):
    bars = []
    draw = video_sampling.draw_plan

    def counted(*args, progress, **options):
        return draw(*args, progress=lambda frames: bars.append(frames) or progress(frames), **options)

    monkeypatch.setattr(video_sampling, "draw_plan", counted)
    argv = [*SAMPLE, "--frames", "7", "--window", "3", "--batch", "2", "--num", "3"]
    assert main([*argv, "--out", str(tmp_path / "x.gif"), "--json", str(tmp_path / "x.json")]) == 0
    assert bars == [14, 7]
    assert json.loads((tmp_path / "x.json").read_text())["window"] == [3, 2]


RUN = [*SAMPLE, "--out", "x.mp4"]
REFUSALS = {
    "unknown word": ([*RUN, "--caption", "a three"], "unknown word 'three'"),
    "too many words": ([*RUN, "--caption", "a a a a a"], "at most 4 words"),
    "missing captions": ([*RUN, "--caption", "gone.txt"], "--caption file gone.txt cannot be read: No such file"),
    "no captions": ([*RUN, "--caption", "empty.txt"], "must contain at least one caption, got none"),
    "captions of bytes": ([*RUN, "--caption", "bytes.txt"], "must be text in UTF-8"),
    "two sources": (
        [*RUN, "--image", "first.png", "--video", "clip.gif"],
        "--image and --video are mutually exclusive",
    ),
    "missing image": ([*RUN, "--image", "gone.png"], "gone.png cannot be read: no such file"),
    "broken video": ([*RUN, "--continue", "broken.mp4"], "broken.mp4 cannot be read"),
    "words as a picture": ([*RUN, "--image", "captions.txt"], "it is not a video or an image"),
    "too few frames": ([*RUN, "--image", "first.png", "--frames", "1"], "--frames must be above the 1 frames"),
    "odd frames": ([*RUN, "--video", "clip.gif", "--frames", "3"], "--frames must be even and at most 4"),
    "long translation": ([*RUN, "--video", "clip.gif", "--frames", "6"], "--frames must be even and at most 4"),
    "no translation": (
        ["sample", "--workdir", "silent", "--out", "x.mp4", "--video", "clip.gif"],
        "needs a run trained with (v2v) captions",
    ),
    "class": ([*RUN, "--class", "3"], "--class cannot be used with the run in run, which is on clips"),
    "caption of a picture": (
        ["sample", "--workdir", "still", "--out", "x.png", "--caption", "a one"],
        "--caption cannot be used with the run in still, which has no captions",
    ),
    "mp4 of images": (["sample", "--workdir", "still", "--out", "x.mp4"], "--out must end in .png or .npz for a run"),
    "other suffix": ([*SAMPLE, "--out", "x.avi"], "--out must end in .png or .npz (of videos also"),
    "aspect": ([*RUN, "--aspect", "wide"], "--aspect must be W:H, both above 0"),
    "thin": ([*RUN, "--aspect", "1:1000"], "multiple must leave both sides above 0"),
    "fps": ([*RUN, "--fps", "0"], "--fps must be a finite number > 0"),
    "fast": ([*RUN, "--fps", "241"], "--fps must be from 0.01 to 240, got 241"),
    "window": ([*RUN, "--window", "1"], "--window must be an integer from 2"),
    "context": ([*RUN, "--context", "4"], "--context must be below the 4 frames of a window, got 4"),
    "keep alone": ([*RUN, "--keep", "2"], "--keep requires --candidates"),
    "keep more": ([*RUN, "--candidates", "2", "--keep", "3"], "--keep must be at most --candidates 2, got 3"),
    "both numbers": ([*RUN, "--candidates", "2", "--num", "3"], "--num and --candidates are mutually exclusive"),
    "huge": ([*SAMPLE, "--out", "x.png", "--frames", "5000"], "x.png would be 4 x 20000 pixels"),
    "scaled arrays": ([*SAMPLE, "--out", "x.npz", "--scale", "2"], "--scale cannot be combined with --out x.npz"),
    "solver": ([*RUN, "--block", "8"], "--block is an option of --solver jacobi"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, here, capfd):
    argv, message = REFUSALS[name]
    before = sorted(here.rglob("*"))
    assert main(argv) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("starflow: ")
    assert message in captured.err
    assert sorted(here.rglob("*")) == before


def test_only_captions_that_cannot_be_read_are_refused(here, capfd):
    assert main([*RUN, "--caption", "bad.txt"]) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("skipped caption") == 2 and not (here / "x.mp4").exists()


def test_file_names_are_safe():
    assert file_name(3, 100, "../../etc/passwd\n a Ünï \x00 *") == "03-etc-passwd-a-n.mp4"
    assert file_name(0, 1, "...") == "0.mp4"
    assert len(file_name(0, 1, "a" * 5000)) < 80


def test_the_scale_shrinks_with_many_videos(tmp_path):
    assert choose_scale(tmp_path / "x.mp4", 1, 8, (16, 16), None) == 8
    assert choose_scale(tmp_path / "x.mp4", 400, 8, (64, 64), None) == 2
    assert choose_scale(tmp_path / "folder", 400, 8, (64, 64), 5) == 5


@pytest.mark.slow
def test_vbench_videos_of_two_settings_are_kept_apart(tmp_path, capsys):
    """What the command leaves to the run's configuration, and the parameters themselves, are settings, too."""
    prompts, out, run = tmp_path / "scene.txt", tmp_path / "bench", tmp_path / "run"
    prompts.write_text("a one\n")
    params = save_run(run, CONFIG)
    argv = ["vbench", "--workdir", str(run), "--num", "1", "--prompts", str(prompts), "--out", str(out)]
    assert main(argv) == 0
    record = json.loads((out / "vbench.json").read_text())
    assert (record["guidance"], record["temperature"], record["denoise"]) == (1.0, 1.0, "none")
    assert record["decoder"] is None and record["text_encoder"].startswith("words ")
    shown = capsys.readouterr().out
    assert all(f"--dimension {name} --videos_path {out}/scene" in shown for name in ("scene", "background_consistency"))
    # The same settings, typed: the same videos.
    assert main([*argv, "--guidance", "1", "--denoise", "none"]) == 0
    assert "0 videos sampled, 1 existed" in capsys.readouterr().out
    file = run / "config.json"
    before = file.read_text()
    changed = json.loads(before)
    changed["sample"]["guidance"] = 2.0
    file.write_text(json.dumps(changed))
    assert main(argv) == 2
    assert "sampled differently: guidance was 1.0, now 2.0" in capsys.readouterr().err
    file.write_text(before)
    assert main([*argv, "--fps", "3"]) == 2
    assert "fps was 8" in capsys.readouterr().err
    # Another model of the same step in a folder of the same name.
    shutil.rmtree(run)
    save_run(run, CONFIG, jax.tree.map(lambda value: value * 1.01, params))
    assert main(argv) == 2
    assert "parameters was" in capsys.readouterr().err


def test_videos_for_vbench(here, tmp_path, capsys):
    prompts, out = tmp_path / "overall_consistency.txt", tmp_path / "bench"
    prompts.write_text("a one\ntwo left\n")
    argv = ["vbench", "--workdir", "run", "--guidance", "0", "--num", "3", "--batch", "4", "--out", str(out)]
    assert main([*argv, "--prompts", str(prompts), "--json", str(tmp_path / "v.json")]) == 0
    folder = out / "overall_consistency"
    names = [f"{prompt}-{index}.mp4" for prompt in ("a one", "two left") for index in range(3)]
    assert sorted(path.name for path in folder.iterdir()) == names  # and nothing else: VBench reads one file's suffix
    assert sorted(path.name for path in out.iterdir()) == ["overall_consistency", "vbench.json"]
    record = json.loads((out / "vbench.json").read_text())
    assert len(set(map(tuple, record["videos"].values()))) == 6 and record["frames"] == FRAMES
    assert f"vbench evaluate --dimension overall_consistency --videos_path {folder}" in capsys.readouterr().out
    # What is missing is drawn again as it was, what is there is left.
    before = {name: (folder / name).read_bytes() for name in names}
    (folder / names[1]).unlink()
    (folder / names[5]).write_bytes(b"kept")
    assert main([*argv, "--prompts", str(prompts)]) == 0
    assert "1 videos sampled, 5 existed" in capsys.readouterr().out
    assert (folder / names[1]).read_bytes() == before[names[1]] and (folder / names[5]).read_bytes() == b"kept"
    assert main([*argv, "--prompts", str(prompts), "--seed", "1"]) == 2
    assert "seed was 0, now 1" in capsys.readouterr().err
    # A call that was stopped before it drew anything leaves the folder to another.
    for name in names:
        (folder / name).unlink()
    assert main([*argv, "--prompts", str(prompts), "--seed", "1", "--num", "1"]) == 0
    assert (folder / names[0]).read_bytes() != before[names[0]] and len(list(folder.iterdir())) == 2
    prompts.write_text("a one\na zwei\n")
    assert main([*argv, "--prompts", str(prompts)]) == 2
    assert "unknown word 'zwei'" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    prompts.write_text("a one\n")
    assert main([*argv[:-1], str(tmp_path / "full"), "--prompts", str(prompts)]) == 2
    assert "contains other files" in capsys.readouterr().err


@pytest.mark.slow
def test_bits_of_frames_in_video_quality(here, tmp_path, capsys):
    argv = ["video-quality", "--workdir", "run", "--video", "clip.gif", "--caption", "a one", "--draws", "1"]
    real = ["--real", "clip.gif", "--real-caption", "two left", "--json", str(tmp_path / "q.json")]
    assert main([*argv, *real, "--out", str(tmp_path / "q")]) == 0
    figures = json.loads((tmp_path / "q.json").read_text())
    bits = {name: figures[name]["each"][0]["curves"]["bits/dim"] for name in ("videos", "real")}
    # Frame by frame those of starflow score, under each caption.
    score = ["score", "--workdir", "run", "--draws", "1", "--video", "clip.gif", "--json", str(tmp_path / "s.json")]
    assert main([*score, "--caption", "a one", "--out", str(tmp_path / "s")]) == 0
    scored = json.loads((tmp_path / "s.json").read_text())["clips"][0]["frames"]
    assert np.allclose(bits["videos"], scored, rtol=1e-6) and not np.allclose(bits["real"], scored)
    assert main([*argv, "--out", str(tmp_path / "again"), "--held-out", "2"]) == 2  # digits of 8 x 8 do not fit into 4
    assert main(["video-quality", "--workdir", "still", "--video", "clip.gif", "--out", str(tmp_path / "no")]) == 2
    assert "must be a run on clips" in capsys.readouterr().err
