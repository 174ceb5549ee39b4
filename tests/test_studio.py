"""The studio without a browser: its logic on tiny runs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import shlex
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from studio_runs import clips_run, pictures_run

import starflow_jax as sf
from starflow_jax.cli.dispatch import main
from starflow_jax.core.storage.local_moves import locked
from starflow_jax.evaluation.likelihood.video_scores import Clip, score_clips
from starflow_jax.media import write_gif
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.sampling.streaming.stream import StreamedFrame, StreamReport
from starflow_jax.sampling.videos.video_plan import text_states
from starflow_jax.studio import drawing as drawing_module
from starflow_jax.studio import familiarity, training_progress
from starflow_jax.studio.command_lines import sample_command
from starflow_jax.studio.comparing import Side, compare
from starflow_jax.studio.drawing import check_caption, draw, frame_choices
from starflow_jax.studio.examples import held_out
from starflow_jax.studio.familiarity import Familiarity
from starflow_jax.studio.opened_model import Checkpoints
from starflow_jax.studio.page_support import PAGES, missing, no_classes, no_translation
from starflow_jax.studio.scoring import DRAWS, score
from starflow_jax.studio.shown_results import (
    command,
    drawing_html,
    pair_html,
    score_html,
    verdict_html,
)
from starflow_jax.studio.studio_request import StudioRequest
from starflow_jax.studio.training_progress import TrainingProgress
from starflow_jax.studio.uploads import check_upload, read_upload
from starflow_jax.training.checkpoints.workdir import is_in_use

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def pictures(home):
    return pictures_run(home)


@pytest.fixture(scope="module")
def clips(home):
    return clips_run(home).first


@pytest.fixture(scope="module")
def video(clips):
    """All states of two streamed clips."""
    request = SampleRequest(num=1, captions=("two left",), seed=3, stream=True, solver="sequential")
    return request, list(draw(clips, request))


@contextlib.contextmanager
def compilations():
    """Counts the programs that are compiled inside."""
    counted = []

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            counted.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_pictures_are_those_of_the_command_that_is_shown(pictures, home, tmp_path):
    request = SampleRequest(num=4, label=1, guidance=1.5, seed=7, solver="sequential")
    [drawing] = draw(pictures.first, request)
    words = shlex.split(sample_command(pictures.first, request))
    assert words[:2] == ["starflow", "sample"]
    out = tmp_path / "drawn.npz"
    assert main([*words[1:-1], str(out)]) == 0
    assert np.array_equal(np.load(out)["image"], drawing.pixels[:, 0])
    assert drawing.labels == ("1",) * 4
    assert drawing.finished and drawing.depth > 0 and drawing.tokens_per_second > 0


def test_a_second_click_compiles_nothing(pictures):
    request = SampleRequest(num=4, label=1, guidance=1.5, seed=7, solver="sequential")
    list(draw(pictures.first, request))
    with compilations() as counted:
        list(draw(pictures.first, dataclasses.replace(request, label=2, guidance=0.5, seed=8)))
    assert not counted
    with compilations() as counted:
        list(draw(pictures.first, dataclasses.replace(request, guidance=0.0)))
    assert counted  # sampling without guidance is another program


def test_frames_are_yielded_one_by_one_and_are_those_of_sample(clips, video):
    request, states = video
    assert [state.pixels.shape[1] for state in states] == [0, 1, 2, 3]
    assert [state.finished for state in states] == [False, False, False, True]
    for before, after in itertools.pairwise(states):
        assert np.array_equal(after.pixels[:, : before.pixels.shape[1]], before.pixels)
    assert 0 < states[-1].first_frame <= states[-1].seconds
    together = sf.sample(clips.run, request=dataclasses.replace(request, batch_size=1))
    assert np.array_equal(together.videos, states[-1].pixels)


def test_a_visitor_who_leaves_ends_the_stream(clips, video):
    request, _ = video
    drawing = draw(clips, request)
    assert [next(drawing).pixels.shape[1] for _ in range(2)] == [0, 1]
    drawing.close()
    assert next(drawing, None) is None
    with compilations() as counted:
        assert [state.finished for state in draw(clips, request)][-1]
    assert not counted


def test_the_time_of_the_page_is_not_counted(clips, monkeypatch):
    clock, made = SimpleNamespace(now=0.0), []
    clock.perf_counter = lambda: clock.now

    class Stream:
        """Three frames after one second each, and two of compiling; the second sample, once denoised, has no number."""

        report = StreamReport(3, None, 0.0, 2.0, ())

        def __init__(self, *_):
            made.append(self)
            self.left = iter(range(3))

        def __next__(self):
            index = next(self.left)
            clock.now += 1.0 if index else 3.0
            x = np.zeros((2, 4, 4, 1), np.float32)
            denoised = x.copy()
            denoised[1, 0, 0, 0] = np.nan if index == 1 else 0.0
            return StreamedFrame(index, np.zeros((2, 4, 4, 1), np.uint8), x, denoised, clock.now)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(drawing_module, "time", clock)
    monkeypatch.setattr(drawing_module, "VideoStream", Stream)
    for state in draw(clips, SampleRequest(num=2, captions=("two left",), stream=True)):  # noqa: B007
        clock.now += 100.0  # of the page, or of waiting for the device
    assert made and (state.first_frame, state.seconds, state.compile_seconds) == (1.0, 3.0, 2.0)
    assert state.tokens_per_second == pytest.approx(2 * 3 * math.prod(clips.config.flow.grid) / 3.0)
    assert any(remark.startswith("1 of 2 samples are not finite") for remark in state.remarks)


def test_captions_that_cannot_be_read_are_one_sentence(clips):
    with pytest.raises(ValueError, match="unknown word"):
        list(draw(clips, SampleRequest(num=1, captions=(HOSTILE,), stream=True)))
    with pytest.raises(ValueError, match="at most 2000 characters"):
        check_caption("x" * 2001)
    assert check_caption("  two\n left ") == ("two left",)
    assert frame_choices(clips) == (3, 6, 9)


def test_a_command_line_is_quoted(clips):
    request = SampleRequest(num=1, captions=("--two; rm -rf $HOME 'x'",), seed=0, solver="jacobi", stream=True)
    words = shlex.split(sample_command(clips, request, {"image": "a b.png"}))
    assert "--caption=--two; rm -rf $HOME 'x'" in words
    assert words[words.index("--image") + 1] == "a b.png"
    assert words[-3:] == ["--stream", "--out", "drawn.gif"]


def test_a_picture_is_scored_with_the_bayes_rule(pictures):
    model = pictures.first
    pixels = held_out(model, 3)
    found = score(model, pixels, seed=5)
    assert found.surprise.shape == (1, *model.config.flow.grid)
    assert found.surprise.mean() == pytest.approx(found.bits_per_dim, abs=1e-4)
    assert sum(share for _, share in found.choices) == pytest.approx(1.0)
    own = sf.bits_per_dim(model.run, np.repeat(pixels, 3, axis=0), [0, 1, 2], draws=16)
    assert found.bits_per_dim == pytest.approx(min(own), abs=0.15)
    # The class summed out: at most log2 of the number of classes more than the likeliest one.
    dims = pixels.size
    assert found.bits / dims < found.bits_per_dim + math.log2(3) / dims + 0.05
    assert found.choices[0][0] == found.condition == str(int(np.argmin(own)))


def test_an_example_is_compared_with_held_out_ones(pictures, monkeypatch):
    familiar, scored = Familiarity(pictures.first), []
    found = score(pictures.first, held_out(pictures.first, 3))
    inside = familiar.judge(dataclasses.replace(found, bits=familiar_bits(familiar, found, scored.append)))
    assert inside.held_out == 24 and inside.like is True and sum(scored) == 48
    assert {one.name for one in inside.comparisons} >= {"likelihood", "typicality", "complexity ratio"}
    assert all(1 / 25 <= one.share <= 1 for one in inside.comparisons)
    outside = familiar.judge(dataclasses.replace(found, bits=1e6))
    share = {one.name: one.share for one in outside.comparisons}
    assert share["likelihood"] == share["typicality"] == 1 / 25 and outside.like is False
    assert "Unlike the data" in verdict_html(outside) and "typicality" in verdict_html(outside)
    monkeypatch.setattr(familiarity, "UNLIKE", 1 / 25)
    few = familiar.judge(found)
    assert few.like is None and "Too few" in verdict_html(few)
    assert [familiarity.reference_size(classes) for classes in (0, 10, 1000)] == [200, 200, 20]


def familiar_bits(familiar, found, report):
    """The mean bits of the training examples, which are then typical."""
    familiar.judge(found, report)
    return familiar._reference.training.mean_bits


@pytest.mark.slow
def test_a_clip_is_scored_under_each_caption(clips):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 1)).astype(np.uint8)
    found = score(clips, pixels, ["two left", "one right", "two  left"], seed=2)
    assert len(found.choices) == 2 and found.choices[0][0] == found.condition
    assert found.frames.shape == (3,)
    assert found.frames.mean() == pytest.approx(found.bits_per_dim)
    assert "By the Bayes rule" in score_html(found, no_classes(clips))
    for wrong, sentence in ((["x" * 2001], "at most 2000 characters"), (["two"], "seed must be")):
        with pytest.raises(ValueError, match=sentence):
            score(clips, pixels, wrong, seed=-1 if len(wrong[0]) < 9 else 0)
    with pytest.raises(ValueError, match="at most 128 frames"):
        score(clips, np.zeros((129, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="at most 64"):
        score(clips, pixels, [f"caption {index}" for index in range(65)])


def test_two_checkpoints_are_compared_on_the_same_noise(pictures):
    request = SampleRequest(num=4, label="all", seed=1)
    steps = pictures.first.steps()
    assert steps == (4, 2)
    pairs = list(compare(pictures, request, Side(4, "sequential", 0.0), Side(2, "sequential", 0.0)))
    assert pairs[-1].difference.relative > 0.01 and pairs[-1].difference.evaluations == 1.0
    # The second checkpoint has weights of its own, and was drawn as the command draws it.
    other = Checkpoints(StudioRequest(workdir=pictures.request.workdir, step=2)).first
    [alone] = draw(other, dataclasses.replace(request, solver="sequential", guidance=0.0))
    assert np.array_equal(alone.pixels, pairs[-1].second.pixels)
    assert "--step 2" in sample_command(pictures.first, request, step=2)
    assert "studio-pair" in pair_html(pairs[-1], ("a", HOSTILE)) and HOSTILE not in pair_html(pairs[-1], ("a", HOSTILE))
    with pytest.raises(ValueError, match="that differ"):
        list(compare(pictures, request, Side(4, "sequential", 0.0), Side(4, "sequential", 0.0)))
    with pytest.raises(ValueError, match="must be one of 4, 2, got 3"):
        pictures.at(3)


def test_pages_say_why_they_are_missing(pictures, clips):
    assert {page for page in PAGES if missing(page, pictures.first)} == {"Continue"}
    assert "no frames" in missing("Continue", pictures.first)
    assert not [page for page in PAGES if missing(page, clips)]
    assert no_classes(pictures.first) is None and "captions" in no_classes(clips)
    assert "was not trained with" in no_translation(clips)


def test_text_is_escaped(video):
    _, states = video
    hostile = dataclasses.replace(states[-1], remarks=(HOSTILE,))
    assert HOSTILE not in drawing_html(hostile) and "&lt;img" in drawing_html(hostile)
    assert HOSTILE not in command(HOSTILE)


def test_the_page_of_the_training_changes_with_its_folder(home, pictures, monkeypatch):
    progress = TrainingProgress(home / "run")
    before = progress.stamp()
    page, version = progress.changed("")
    assert "Checkpoints" in page and progress.stamp() == before
    assert progress.changed(version) is None and progress.changed(None) == (page, version)
    (home / "run" / "metrics.csv").write_text("step,loss\n1,2.5\n2,2.25\n")
    monkeypatch.setattr(training_progress, "_SECONDS", 1e6)
    assert progress.changed(version) is None  # seen by another visitor just now
    monkeypatch.setattr(training_progress, "_SECONDS", 0.0)
    newer, its_version = progress.changed(version)
    assert its_version != version and "svg" in newer and progress.changed(its_version) is None
    with locked(home / "run", shared=True) as free:
        assert free and not is_in_use(home / "run")  # others may look at the same time
    with locked(home / "run") as free:
        assert free and is_in_use(home / "run")
    (home / "run" / "metrics.csv").unlink()


def test_uploads_are_read_by_content_and_from_their_folder_alone(tmp_path, pictures, clips, monkeypatch):
    uploads, outside = tmp_path / "uploads", tmp_path / "secret.png"
    uploads.mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(outside)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(uploads / "inside.txt", format="PNG")
    (uploads / "link.png").symlink_to(outside)
    for path in (str(outside), str(uploads / ".." / "secret.png"), str(uploads / "link.png"), "http://x/y.png"):
        with pytest.raises(ValueError, match="dropped here"):
            check_upload(path, uploads)
    with pytest.raises(ValueError, match="drop a picture"):
        check_upload(None, uploads)
    assert read_upload(check_upload(str(uploads / "inside.txt"), uploads), pictures.first).shape == (1, 4, 4, 1)
    write_gif(uploads / "clip.gif", np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1), fps=8)
    with pytest.raises(ValueError, match=r"^video clip\.gif cannot be read: it must contain at most 2 frames"):
        read_upload(check_upload(str(uploads / "clip.gif"), uploads), pictures.first, most=2)
    monkeypatch.setattr(drawing_module, "MOST_FRAMES", 2)
    with pytest.raises(ValueError, match="must contain at most 2 frames"):  # read by the reader of `starflow sample`
        list(draw(clips, SampleRequest(num=1, continued=uploads / "clip.gif")))
    long = uploads / f"{'x' * 120}.png"
    long.write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage")
    upload = check_upload(str(long), uploads)
    assert upload.name == long.name and len(upload.shown) == 80
    with pytest.raises(ValueError, match=r"^video x{76}\.png cannot be read"):
        read_upload(upload, pictures.first)
    (uploads / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage")
    with pytest.raises(ValueError, match=r"^video bad\.png cannot be read"):
        read_upload(check_upload(str(uploads / "bad.png"), uploads), pictures.first)


@pytest.mark.slow
def test_clips_are_compared_under_one_condition(clips, monkeypatch):
    made = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4, 1)).astype(np.uint8)

    class Source(list):
        levels = 256

    examples = Source({"image": clip, "text": np.asarray([3, 4], np.int32)} for clip in made)
    monkeypatch.setattr(familiarity, "open_scored_source", lambda *_: examples)
    found = score(clips, made[0], ["two left", "one right"])
    familiar, scored = Familiarity(clips), []
    verdict = familiar.judge(found, scored.append)
    assert verdict.held_out == 20 and verdict.like is not None and scored == [1] * 40
    state = text_states(clips.config, [""])[0]
    plain = [Clip("", "", pixels, 256, state) for pixels in made]
    options = {"draws": DRAWS, "batch_size": 1}
    alone = score_clips(clips.run.params, clips.config, plain[:1], jax.random.key(0), **options)[0].bits_per_dim
    likelihood = next(one for one in verdict.comparisons if one.name == "likelihood")
    assert likelihood.value == pytest.approx(alone, rel=1e-5) and likelihood.value != found.bits_per_dim
    last = score_clips(clips.run.params, clips.config, plain[-1:], jax.random.key(2 + 2 * 19), **options)[0]
    assert familiar._reference.held_out["likelihood"][-1] == pytest.approx(last.bits_per_dim, rel=1e-5)
