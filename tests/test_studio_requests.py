"""What the studio lets through, receives and refuses, without a browser; and the refusals of its command."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import json
import os
import socket
import time

import numpy as np
import pytest
from PIL import Image
from random_flows import CLASSES
from sweep_runs import TRAIN

from starflow_jax.cli.dispatch import main
from starflow_jax.core.config import DataConfig, ExperimentConfig
from starflow_jax.core.config.build import to_json
from starflow_jax.studio import guarded_requests, opened_model, serving
from starflow_jax.studio.filling_in import hidden, painted
from starflow_jax.studio.guarded_requests import (
    MOST_JSON,
    GuardedRequests,
    host_name,
    is_same_place,
    names_remote_file,
    stored_bytes,
)
from starflow_jax.studio.painted_layers import most_side, opacity
from starflow_jax.studio.serving import _environment
from starflow_jax.studio.studio_request import StudioRequest

MOST_UPLOAD = 1000
HOST = b"127.0.0.1:7860"


@pytest.fixture
def home(tmp_path):
    """A folder with the configuration of a run on pictures."""
    data = DataConfig(source="npz", path=str(tmp_path / "data"), levels=256)
    config = ExperimentConfig(name="run", flow=CLASSES, data=data, train=TRAIN)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    return tmp_path


def answered(method="POST", path="/gradio_api/queue/join", body=b"{}", length=None, host=HOST, **options):
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

    headers = [(b"host", host), *options.get("headers", ())]
    if length != "none":
        headers.append((b"content-length", str(len(body) if length is None else length).encode()))
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    guarded = GuardedRequests(application, MOST_UPLOAD, options.get("uploads", "/none"), options.get("hosts"))
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
    assert answered("GET", "/gradio_api/file= HTTP://example.com/x")[0] == 403
    assert answered("GET", "/gradio_api/file=/tmp/x")[0] == 200
    hosts = ("127.0.0.1", "localhost", "::1")
    assert [answered(host=host, hosts=hosts)[0] for host in (b"localhost:1", b"[::1]:2", b"evil.example:1", b"")] == [
        200, 200, 403, 403,
    ]  # fmt: skip
    assert host_name(b"[::1]:80") == "::1" and host_name(b"a:b:c") == ""
    assert not names_remote_file(b'{"path": "C:\\\\x.png"}')  # a drive
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


def test_errors_while_pages_are_built_are_one_sentence(home, monkeypatch, capsys):
    @contextlib.contextmanager
    def fails(*_):
        raise ValueError("the pages cannot be built.\nTwice.")
        yield

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(opened_model, "Checkpoints", lambda request: None)
    monkeypatch.setattr(serving, "serving", fails)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert main(["studio", "--workdir", str(home / "run"), "--port", str(port)]) == 2
    assert "the pages cannot be built. Twice" in capsys.readouterr().err


def test_only_what_the_pages_ask_for_is_answered():
    for path in ("/", "/config", "/assets/index-a.js", "/gradio_api/queue/data", "/gradio_api/heartbeat/ab12"):
        assert answered("GET", path)[0] == 200, path
    for path in ("queue/join", "run/predict", "cancel", "reset"):  # run/predict: Stop, and the page of the training
        assert answered("POST", f"/gradio_api/{path}")[0] == 200, path
    gradio = "/gradio_api/"
    for path in (
        "file/https://example.com/x", "proxy=https://example.com/x", "dev/reload", "deep_link", "process_recording",
        "call/x", "run/x", "stream/a/1/2/playlist.m3u8", "vibe-code", "openapi.json", "custom_component/a/client/b/c",
        "component_server",
    ):  # fmt: skip
        assert answered("GET", gradio + path) == (404, []), path
        assert answered("POST", gradio + path) == (404, []), path
    for path in ("/monitoring", "/monitoring/summary", "/docs", "//", "/login", "/gradio_api/heartbeat/a/b"):
        assert answered("GET", path) == (404, []), path


def test_sockets_are_refused():
    sent = []

    async def application(scope, receive, send):
        sent.append("reached")

    async def send(message):
        sent.append(message["type"])

    guarded = GuardedRequests(application, MOST_UPLOAD, "/none")
    asyncio.run(guarded({"type": "websocket", "path": "/"}, None, send))
    assert sent == ["websocket.close"]
    asyncio.run(guarded({"type": "lifespan"}, None, send))
    assert sent[1:] == ["reached"]


def test_other_pages_of_the_browser_are_refused():
    for origin, status in (
        (b"http://127.0.0.1:7860", 200), (b"https://evil.example", 403), (b"null", 403),
        (b"http://127.0.0.1:7861", 403), (b"http://localhost:7860", 403), (b"", 403),
    ):  # fmt: skip
        for method, path in (("POST", "/gradio_api/queue/join"), ("GET", "/gradio_api/queue/data")):
            assert answered(method, path, headers=[(b"origin", origin)])[0] == status, origin
    assert is_same_place(b"https://studio.example", b"Studio.example:443")
    assert not is_same_place(b"file://x", b"x")


def test_uploads_are_bounded_together(tmp_path):
    (tmp_path / "held").write_bytes(bytes(20_000))
    assert 20_000 < stored_bytes(tmp_path) < 30_000
    assert answered(path="/gradio_api/upload", uploads=tmp_path)[0] == 200
    (tmp_path / "more").mkdir()
    for index in range(2):  # also small files count
        (tmp_path / "more" / str(index)).write_bytes(b"1")
    assert answered(path="/gradio_api/upload", uploads=tmp_path) == (507, [])
    assert answered(path="/gradio_api/queue/join", uploads=tmp_path)[0] == 200
    hour = time.time() - 3590.0
    os.utime(tmp_path / "more" / "0", (hour, hour))
    os.utime(tmp_path / "held", (hour - 20.0, hour - 20.0))  # also a file that Gradio does not know of
    assert answered(path="/gradio_api/upload", uploads=tmp_path)[0] == 200
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["0", "1"]


def test_folders_that_were_left_empty_are_removed(tmp_path):
    for name in ("old/inner", "fresh", "full"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "full" / "file").write_bytes(b"1")
    hours = time.time() - 7200.0
    for name in ("old/inner", "old", "full", "."):
        os.utime(tmp_path / name, (hours, hours))
    stored_bytes(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "full", "old"]  # which has just been emptied
    assert not (tmp_path / "old" / "inner").exists()
    for name in ("old", "full/file", "fresh"):
        os.utime(tmp_path / name, (hours, hours))
    assert stored_bytes(tmp_path) == 0 and [path.name for path in tmp_path.iterdir()] == ["full"]
    os.utime(tmp_path / "full", (hours, hours))
    os.utime(tmp_path, (hours, hours))
    assert stored_bytes(tmp_path) == 0 and tmp_path.is_dir()  # the folder of all uploads stays


def test_an_upload_that_sends_nothing_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded_requests, "_SILENCE", 0.01)
    sent, ended = [], []

    async def application(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        ended.append(await receive())  # of the connection, which may stay open for long
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def parts(*messages):
        left = list(messages)

        async def receive():
            if not left:
                await asyncio.sleep(0.05 if messages and not messages[-1]["more_body"] else 60)
            return left.pop(0) if left else {"type": "http.disconnect"}

        return receive

    async def send(message):
        sent.append(message.get("status"))

    guarded = GuardedRequests(application, 2**16, tmp_path)
    headers = [(b"host", HOST), (b"content-length", str(2**16).encode())]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
    for messages in ((), ({"type": "http.request", "body": b"1", "more_body": True},)):
        asyncio.run(guarded(scope, parts(*messages), send))
    asyncio.run(guarded(scope, parts({"type": "http.request", "body": b"1", "more_body": False}), send))
    assert [status for status in sent if status] == [408, 408, 200] and ended == [{"type": "http.disconnect"}]
    assert guarded._arriving == 0


def test_an_upload_that_takes_too_long_makes_room(tmp_path, monkeypatch):
    """It sends a byte often enough, or always, and does not end; each is refused at its deadline."""

    async def application(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    sent = []

    async def send(message):
        sent.append(message.get("status") or json.loads(message["body"])["detail"])

    guarded = GuardedRequests(application, 2**16, tmp_path)
    headers = [(b"host", HOST), (b"content-length", str(2**16).encode())]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": headers}
    monkeypatch.setattr(guarded_requests, "_LONGEST", 0.05)
    for pause in (0.0, 0.01, 60.0):
        left = 100_000

        async def receive(pause=pause):
            nonlocal left
            left -= 1
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": b"1", "more_body": left > 0}

        asyncio.run(guarded(scope, receive, send))
    assert sent == [408, "an upload must not take longer than 0 s"] * 3 and guarded._arriving == 0


def png(rows, columns, opaque=0, kind="PNG"):
    """A picture whose first rows are opaque, as a file."""
    pixels = np.zeros((rows, columns, 4), np.uint8)
    pixels[:opaque, :, 3] = 255
    data = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert("RGB") if kind in ("JPEG", "EPS") else image).save(data, format=kind)
    return data.getvalue()


def test_paint_is_read_as_pictures_of_a_browser_alone(tmp_path):
    def file(data):
        (tmp_path / "layer.png").write_bytes(data)
        return tmp_path / "layer.png"

    assert (opacity([file(png(8, 8, 4))], 32)[:, 0] > 0).sum() == 4
    assert opacity([file(png(8, 8, 1, "WEBP"))], 32).any() and opacity([], 32) is None
    for data, sentence in (
        (png(33, 8), "at most 32 rows"),
        (png(8, 8, kind="JPEG"), "PNG or WebP"),
        (png(8, 8, kind="EPS"), "PNG or WebP"),
        (png(8, 8)[:40], "PNG or WebP"),
        (b"", "PNG or WebP"),
    ):
        with pytest.raises(ValueError, match=sentence):
            opacity([file(data)], 32)
    (tmp_path / "other.png").write_bytes(png(8, 9))
    with pytest.raises(ValueError, match="one size"):
        opacity([file(png(8, 8)), tmp_path / "other.png"], 32)
    with pytest.raises(ValueError, match="at most 4 layers"):
        opacity([tmp_path / "other.png"] * 5, 32)
    assert most_side(4, 4) == 1600 and most_side(2000, 9) == 4000


def test_painted_pixels_are_those_that_are_mostly_covered():
    alpha = np.zeros((40, 40), np.uint8)
    alpha[:10, :14] = 255  # the first pixel, and two fifths of the second one
    expected = np.zeros((4, 4), bool)
    expected[0, 0] = True
    assert np.array_equal(painted(alpha, 4, 4), expected)
    alpha[:10, :16] = 9
    assert painted(alpha, 4, 4).sum() == 2
    alpha[:10, 15:] = 0
    assert painted(alpha, 4, 4).sum() == 2  # a half
    with pytest.raises(ValueError, match="at least 4 rows"):
        painted(alpha[:2], 4, 4)
    assert hidden(expected, 3, 1, 2).sum() == 2 and not hidden(expected, 3, 1, 2)[0].any()
    assert hidden(np.zeros((4, 4), bool), 3, 1, 1)[1].all()  # whole frames where nothing is painted
    for painting, frames in ((np.zeros((4, 4), bool), (0, 2)), (np.ones((4, 4), bool), (0, 2)), (expected, (2, 3))):
        with pytest.raises(ValueError):
            hidden(painting, 3, *frames)


def test_the_environment_says_nothing_else_to_gradio(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_WATCH_DIRS", "/")
    monkeypatch.setenv("GRADIO_SHARE", "True")
    with _environment(str(tmp_path), "127.0.0.1"):
        inside = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    assert inside == {
        "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_TEMP_DIR": str(tmp_path)
    }  # fmt: skip
    assert os.environ["GRADIO_SHARE"] == "True"
