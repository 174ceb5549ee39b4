"""The studio without a browser: its logic on tiny runs, the bounds of its requests, and the command's refusals."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import math
import shlex
import socket
import threading

import jax
import numpy as np
import pytest
from PIL import Image
from random_flows import CLASSES, VIDEO, random_flow
from sweep_runs import params_of, write_arrays, write_run

import starflow_jax as sf
from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig
from starflow_jax.core.config.experiment_config import TextConfig
from starflow_jax.evaluation.likelihood.video_scores import Clip, score_clips
from starflow_jax.sampling.sample_requests import SampleRequest
from starflow_jax.sampling.videos.video_plan import text_states
from starflow_jax.studio import familiarity
from starflow_jax.studio.background_work import Outcome, Progress, in_background, in_turn
from starflow_jax.studio.command_lines import inpaint_command, sample_command
from starflow_jax.studio.comparing import Side, compare
from starflow_jax.studio.drawing import check_caption, draw, frame_choices
from starflow_jax.studio.examples import held_out
from starflow_jax.studio.familiarity import Familiarity
from starflow_jax.studio.filling_in import CHOICES, Filling, fill_in, hidden, painted
from starflow_jax.studio.guarded_requests import MOST_JSON, GuardedRequests, host_name, names_remote_file
from starflow_jax.studio.opened_model import Checkpoints
from starflow_jax.studio.page_support import PAGES, missing, no_classes, no_translation
from starflow_jax.studio.scoring import score
from starflow_jax.studio.shown_results import command, drawing_html, pair_html, score_html, verdict_html
from starflow_jax.studio.studio_request import StudioRequest
from starflow_jax.studio.training_progress import TrainingProgress
from starflow_jax.studio.uploads import check_upload, read_upload

WORDS = ("zero", "one", "two", "left", "right")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run on pictures of three classes, at two steps, and one on clips with captions."""
    home = tmp_path_factory.mktemp("studio")
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 1))
    data = DataConfig(source="npz", path=str(write_arrays(home / "data", images)), levels=256, label_drop=0.1)
    write_run(home / "run", CLASSES, data, {step: params_of(random_flow(CLASSES, step)) for step in (2, 4)})
    flow = dataclasses.replace(VIDEO, channels=1, text_dim=len(WORDS))
    data = DataConfig(source="moving_digits", frames=3, noise="gaussian", noise_std=0.3)
    write_run(home / "clips", flow, data, {4: params_of(random_flow(flow))}, text=TextConfig(vocabulary=WORDS))
    return home


@pytest.fixture(scope="module")
def pictures(home):
    return Checkpoints(StudioRequest(workdir=home / "run"))


@pytest.fixture(scope="module")
def clips(home):
    return Checkpoints(StudioRequest(workdir=home / "clips")).first


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
    assert drawing.finished and drawing.depth > 0 and drawing.tokens_per_second > 0


def test_a_second_click_compiles_nothing(pictures):
    request = SampleRequest(num=4, label=1, guidance=1.5, seed=7, solver="sequential")
    list(draw(pictures.first, request))
    with compilations() as counted:
        list(draw(pictures.first, dataclasses.replace(request, label=2, guidance=0.5, seed=8)))
    assert not counted
    with compilations() as counted:
        list(draw(pictures.first, dataclasses.replace(request, num=1)))
    assert counted  # so that the counter counts


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


@pytest.mark.slow
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


def test_an_example_is_compared_with_held_out_ones(pictures):
    familiar = Familiarity(pictures.first)
    inside = familiar.judge(score(pictures.first, held_out(pictures.first, 3)))
    assert inside.held_out == 11 and inside.like
    assert {one.name for one in inside.comparisons} >= {"likelihood", "typicality", "complexity ratio"}
    outside = familiar.judge(score(pictures.first, np.full((1, 4, 4, 1), 255, np.uint8)))
    share = {one.name: one.share for one in outside.comparisons}
    assert share["likelihood"] <= 1 / 12 + 1e-9 or share["typicality"] <= 1 / 12 + 1e-9
    assert all(1 / 12 <= one.share <= 1 for one in outside.comparisons)
    assert "typicality" in verdict_html(outside)


@pytest.mark.slow
def test_a_clip_is_scored_under_each_caption(clips):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 1)).astype(np.uint8)
    found = score(clips, pixels, ["two left", "one right", "two  left"], seed=2)
    assert len(found.choices) == 2 and found.choices[0][0] == found.condition
    assert found.frames.shape == (3,)
    assert found.frames.mean() == pytest.approx(found.bits_per_dim)
    assert "By the Bayes rule" in score_html(found, no_classes(clips))
    with pytest.raises(ValueError, match="at most 64"):
        score(clips, pixels, [f"caption {index}" for index in range(65)])


def test_painted_pixels_are_those_that_are_mostly_covered():
    alpha = np.zeros((40, 40), np.uint8)
    alpha[:10, :14] = 255  # the first pixel, and two fifths of the second one
    expected = np.zeros((4, 4), bool)
    expected[0, 0] = True
    assert np.array_equal(painted(alpha, 4, 4), expected)
    alpha[:10, :16] = 9
    assert painted(alpha, 4, 4).sum() == 2
    with pytest.raises(ValueError, match="at least 4 rows"):
        painted(alpha[:2], 4, 4)
    assert hidden(expected, 3, 1, 2).sum() == 2 and not hidden(expected, 3, 1, 2)[0].any()
    assert hidden(np.zeros((4, 4), bool), 3, 1, 1)[1].all()  # whole frames where nothing is painted
    for painting, frames in ((np.zeros((4, 4), bool), (0, 2)), (np.ones((4, 4), bool), (0, 2)), (expected, (2, 3))):
        with pytest.raises(ValueError):
            hidden(painting, 3, *frames)


@pytest.mark.slow
def test_what_is_painted_over_is_filled_in(pictures, monkeypatch):
    few = sf.ChainOptions(chains=3, candidates=2, draws=4, thin=1, burn_in=8)
    monkeypatch.setitem(CHOICES, "quick", few)
    pixels = held_out(pictures.first, 0)
    missing = np.zeros((1, 4, 4), bool)
    missing[0, :2] = True
    steps = list(fill_in(pictures.first, pixels, missing, Filling(label="any"), threading.Lock()))
    assert any(isinstance(step, Progress) for step in steps)
    filled = steps[-1].value
    assert filled.pixels.shape == (3, 1, 4, 4, 1)
    assert np.array_equal(filled.pixels[:, ~missing], np.broadcast_to(pixels[~missing], (3, 8, 1)))
    assert sum(share for _, share in filled.classes) == pytest.approx(1.0)
    line = shlex.split(inpaint_command(pictures.first, "a.png", few, label="any", caption=None, seed=0))
    assert line[line.index("--steps") + 1] == "4" and line[line.index("--mask") + 1] == "mask.png"
    with pytest.raises(ValueError, match="class must be"):
        list(fill_in(pictures.first, pixels, missing, Filling(label="3"), threading.Lock()))


def test_closing_ends_work_in_the_background():
    reached, entered = [], threading.Event()

    def work(report):
        for index in range(1000):
            reached.append(index)
            report(1)
            entered.wait(0.005)
        return "done"

    device = threading.Lock()
    steps = in_background(work, device)
    while not next(steps).done:
        pass
    steps.close()
    with device:  # which the work held until its end
        assert 0 < len(reached) < 1000
    assert [step.value for step in in_background(lambda report: 5, device) if isinstance(step, Outcome)] == [5]

    def fails(report):
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        list(in_background(fails, device))


def test_the_device_is_held_for_one_step_at_a_time():
    device, held, ended = threading.Lock(), [], []

    def steps():
        try:
            for index in range(3):
                held.append(device.locked())
                yield index
        finally:
            ended.append(True)

    turns = in_turn(device, steps())
    assert next(turns) == 0 and not device.locked()
    turns.close()
    assert ended == [True] and held == [True]
    assert list(in_turn(device, steps())) == [0, 1, 2]


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
    assert "(invert)" in no_translation(clips) or "translate" in no_translation(clips)


def test_text_is_escaped(video):
    _, states = video
    hostile = dataclasses.replace(states[-1], remarks=(HOSTILE,))
    assert HOSTILE not in drawing_html(hostile) and "&lt;img" in drawing_html(hostile)
    assert HOSTILE not in command(HOSTILE)


def test_the_page_of_the_training_changes_with_its_folder(home):
    progress = TrainingProgress(home / "run")
    before = progress.stamp()
    assert "Checkpoints" in progress.html() and progress.stamp() == before
    (home / "run" / "metrics.csv").write_text("step,loss\n1,2.5\n2,2.25\n")
    assert progress.stamp() != before and "svg" in progress.html()
    (home / "run" / "metrics.csv").unlink()


def test_uploads_are_read_by_content_and_from_their_folder_alone(tmp_path, pictures):
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
    (uploads / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage")
    with pytest.raises(ValueError, match=r"^video bad\.png cannot be read"):
        read_upload(check_upload(str(uploads / "bad.png"), uploads), pictures.first)


def answered(method="POST", path="/gradio_api/queue/join", body=b"{}", host=b"127.0.0.1:7860", length=None, **options):
    """The status of a request, and the body that reached the application."""
    reached, sent = [], []

    async def application(scope, receive, send):
        message = await receive()
        reached.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"host", host)]
    if length != "none":
        headers.append((b"content-length", str(len(body) if length is None else length).encode()))
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    guarded = GuardedRequests(application, 1000, options.get("hosts"))
    asyncio.run(guarded(scope, receive, send))
    assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]
    return sent[0]["status"], reached


def test_requests_are_bounded():
    assert answered(body=b'{"data": [1]}') == (200, [b'{"data": [1]}'])
    assert answered(length="none")[0] == 411
    assert answered(length=MOST_JSON + 1)[0] == 413
    assert answered(body=b"x" * 10, path="/gradio_api/upload")[0] == 200
    assert answered(length=1000 + 2**16 + 1, path="/gradio_api/upload")[0] == 413
    remote = json.dumps({"data": [{"path": "http://10.0.0.1/x", "meta": {"_type": "gradio.FileData"}}]}).encode()
    assert answered(body=remote) == (403, [])
    assert answered("GET", "/gradio_api/file=https://example.com/x")[0] == 403
    assert answered("GET", "/gradio_api/file=/tmp/x")[0] == 200
    hosts = ("127.0.0.1", "localhost", "::1")
    assert [answered(host=host, hosts=hosts)[0] for host in (b"localhost:1", b"[::1]:2", b"evil.example:1", b"")] == [
        200, 200, 403, 403,
    ]  # fmt: skip
    assert host_name(b"[::1]:80") == "::1" and host_name(b"a:b:c") == ""
    assert not names_remote_file(b"{") and names_remote_file(b"[" * 60 + b"]" * 60)


def test_requests_of_the_command_are_checked(home, monkeypatch, capsys):
    with pytest.raises(ValueError, match="host must be an IP address"):
        StudioRequest(workdir=home, host="example.com")
    with pytest.raises(ValueError, match="port"):
        StudioRequest(workdir=home, port=0)
    assert StudioRequest(workdir=home).is_local and not StudioRequest(workdir=home, host="0.0.0.0").is_local
    command = ["studio", "--workdir", str(home / "run")]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main([*command, "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be opened" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert main([*command, "--port", str(port)]) == 2
    assert "starflow-jax[studio]" in capsys.readouterr().err


@pytest.mark.slow
def test_clips_are_compared_with_held_out_clips(clips, monkeypatch):
    config = clips.config
    made = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4, 1)).astype(np.uint8)
    given = source_clips_of(config, made)
    monkeypatch.setattr(familiarity, "open_scored_source", lambda *_: made)
    monkeypatch.setattr(familiarity, "source_clips", lambda source, *_: given)
    found = score(clips, made[0])
    verdict = Familiarity(clips).judge(found)
    assert verdict.held_out == 6 and verdict.like
    alone = score_clips(clips.run.params, config, given[:1], jax.random.key(0), draws=1)
    assert alone[0].bits_per_dim == pytest.approx(found.bits_per_dim, rel=0.2)


def source_clips_of(config, made):
    """Clips of the empty caption."""
    state = text_states(config, [""])[0]
    return [Clip(str(index), "", pixels, 256, state) for index, pixels in enumerate(made)]
