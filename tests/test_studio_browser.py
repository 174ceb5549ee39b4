"""The studio in Chromium, each page used as a visitor would; and twenty visitors at once, bad files, closed tabs.

Needs Gradio, Playwright (extra `test-studio`) and a Chromium of the system.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_flows import CLASSES, random_flow
from studio_servers import MOST_UPLOAD, SECONDS, Client, served
from sweep_runs import params_of, write_run

from starflow_jax.core.config import DataConfig, load_config
from starflow_jax.media import write_gif

pytestmark = pytest.mark.slow
pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
httpx = pytest.importorskip("httpx")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
HOSTILE = "<img src=x onerror=window.hacked=1>${window.hacked=1}{{constructor}}"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs on digits with classes and on clips of moving digits with captions, and files to drop."""
    home = tmp_path_factory.mktemp("studio")
    flow = dataclasses.replace(CLASSES, num_classes=10, image_size=8)
    data = DataConfig(label_drop=0.1)
    write_run(home / "digits", flow, data, {step: params_of(random_flow(flow, step)) for step in (2, 4)})
    clips = load_config(str(EXPERIMENTS / "moving_digits.py") + ":tiny")
    write_run(home / "moving", clips.flow, clips.data, {4: params_of(random_flow(clips.flow))}, text=clips.text)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 20)).astype(np.uint8)).save(home / "picture.png")
    write_gif(home / "clip.gif", rng.integers(0, 256, (8, 24, 24, 1)).astype(np.uint8), fps=8)
    (home / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage" * 20)
    (home / "text.png").write_text("<svg onload=alert(1)>")
    (home / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(MOST_UPLOAD * 2**20 + 2**17))
    return home


@pytest.fixture(scope="module")
def digits(home):
    with served(home / "digits", "--queue", "24") as address:
        yield address


@pytest.fixture(scope="module")
def moving(home):
    with served(home / "moving") as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


class Visitor:
    """A tab, what it asked for elsewhere, and its dialogs and errors."""

    def __init__(self, browser, address):
        self.address, self.elsewhere, self.problems = address, [], []
        self.page = browser.new_page(viewport={"width": 1280, "height": 1000})
        self.page.set_default_timeout(1000 * SECONDS)
        self.page.on("request", self._asked)
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(address)
        self.page.get_by_role("tab", name="Draw").wait_for()

    def _asked(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def open(self, tab):
        self.page.get_by_role("tab", name=tab).click()

    def click(self, name):
        self.page.locator(f"#{name}").click()

    def wait_for(self, name, text, seconds=SECONDS):
        self.page.locator(f"#{name}", has_text=text).wait_for(timeout=1000 * seconds)

    def message(self, text):
        toast = self.page.locator(".toast-body", has_text=text).first
        toast.wait_for()
        return toast.inner_text()

    def close(self):
        self.page.close()


@pytest.fixture
def visit(browser):
    """Opens tabs, and checks at the end that none was hacked, failed or asked for anything elsewhere."""
    opened = []

    def open_one(address):
        opened.append(Visitor(browser, address))
        return opened[-1]

    yield open_one
    for visitor in opened:
        hacked = None if visitor.page.is_closed() else visitor.page.evaluate("window.hacked")
        visitor.close()
        assert not visitor.elsewhere and not visitor.problems and hacked is None


def test_draw_pictures(digits, visit):
    visitor = visit(digits)
    visitor.click("draw-begin")
    visitor.wait_for("draw-result", "evaluations in sequence")
    assert visitor.page.locator("#draw-result img").count() == 16
    assert "--seed 0" in visitor.page.locator("#draw-command").inner_text()
    assert visitor.page.locator("#studio-heading").inner_text().startswith("digits")


def test_frames_appear_as_they_are_final(moving, visit):
    visitor = visit(moving)
    visitor.page.evaluate(
        """() => { window.counts = [];
        new MutationObserver(() => window.counts.push(document.querySelectorAll('#draw-result .studio-row img').length))
        .observe(document.querySelector('#draw-result'), {childList: true, subtree: true}); }"""
    )
    visitor.page.get_by_label("Caption").first.fill("a seven moving left")
    visitor.click("draw-begin")
    visitor.wait_for("draw-result", "tokens/s")
    counts = visitor.page.evaluate("window.counts")
    assert len(set(counts)) > 3 and counts == sorted(counts), counts
    assert visitor.page.locator("#draw-result img[src^='data:image/gif']").count() == 1


def test_stop_and_a_closed_tab_end_a_draw(moving, visit):
    leaving, staying = visit(moving), visit(moving)
    for visitor in (leaving, staying):
        visitor.page.locator("#draw-frames input[type=radio]").last.check()
    leaving.click("draw-begin")
    leaving.wait_for("draw-result", "final")
    leaving.close()
    staying.click("draw-begin")
    staying.wait_for("draw-result", "final")
    staying.click("draw-stop")
    staying.wait_for("draw-status", "stopped")
    staying.page.locator("#draw-frames input[type=radio]").first.check()
    for _ in range(6):  # a click is refused until the frame that was in progress has ended
        staying.click("draw-begin")
        with contextlib.suppress(playwright.TimeoutError):
            staying.wait_for("draw-result", "tokens/s", 20)
            break
    staying.wait_for("draw-result", "tokens/s")


def test_hostile_captions_are_text(moving, visit):
    visitor = visit(moving)
    visitor.page.get_by_label("Caption").first.fill(HOSTILE)
    visitor.click("draw-begin")
    assert "<img src=x" in visitor.message("unknown word")
    assert "<img src=x" in visitor.page.locator("#draw-command").inner_text()
    assert visitor.page.locator("#draw-command img").count() == 0


def test_continue_a_picture_and_a_clip(moving, home, visit):
    visitor = visit(moving)
    visitor.open("Continue")
    visitor.page.locator("#continue-file input[type=file]").set_input_files(home / "picture.png")
    visitor.wait_for("continue-file", "⇣")  # beside its size, once it was uploaded
    visitor.click("continue-begin")
    visitor.wait_for("continue-result", "tokens/s")
    assert visitor.page.locator("#continue-result .studio-given img").count() == 1
    assert "--image picture.png" in visitor.page.locator("#continue-command").inner_text()
    assert "starflow-studio-" not in visitor.page.locator("#continue-command").inner_text()
    visitor = visit(moving)
    visitor.open("Continue")
    visitor.page.locator("#continue-file input[type=file]").set_input_files(home / "clip.gif")
    visitor.wait_for("continue-file", "⇣")
    visitor.page.get_by_label("continue this clip").check()
    visitor.page.locator("#continue-frames input[type=radio]").last.check()
    visitor.click("continue-begin")
    visitor.wait_for("continue-result", "final")
    assert "--continue clip.gif" in visitor.page.locator("#continue-command").inner_text()
    visitor.click("continue-stop")
    visitor.wait_for("continue-status", "stopped")
    visitor.page.locator("#continue-frames input[type=radio]").first.check()
    for _ in range(6):  # a click is refused until the frame that was in progress has ended
        visitor.click("continue-begin")
        with contextlib.suppress(playwright.TimeoutError):
            visitor.wait_for("continue-result", "tokens/s", 20)
            break
    visitor.wait_for("continue-result", "tokens/s")
    assert visitor.page.locator("#continue-result .studio-given img").count() > 1


def test_score_a_picture(digits, home, visit):
    visitor = visit(digits)
    visitor.open("Score")
    visitor.page.locator("#score-file input[type=file]").set_input_files(home / "picture.png")
    visitor.wait_for("score-file", "⇣")  # beside its size, once it was uploaded
    visitor.click("score-begin")
    visitor.wait_for("score-result", "bits/dim")
    visitor.wait_for("score-result", "By the Bayes rule")
    visitor.wait_for("score-verdict", "the data of the run")


def test_bad_uploads_are_one_sentence(digits, home, visit):
    for name, sentence in (("bad.png", "cannot be read"), ("text.png", "not a video or an image")):
        visitor = visit(digits)
        visitor.open("Score")
        visitor.page.locator("#score-file input[type=file]").set_input_files(home / name)
        visitor.wait_for("score-file", "⇣")
        visitor.click("score-begin")
        text = visitor.message(sentence)
        assert name in text and "/" not in text
    visitor = visit(digits)
    visitor.open("Score")
    visitor.page.locator("#score-file input[type=file]").set_input_files(home / "large.png")
    visitor.message("maximum allowed size")
    visitor.click("score-begin")  # of the held-out example
    visitor.wait_for("score-result", "bits/dim")


def test_paint_and_fill_in(digits, visit):
    visitor = visit(digits)
    visitor.open("Edit")
    visitor.page.locator("#edit-number input").fill("3")
    visitor.click("edit-show")
    visitor.wait_for("edit-result", "held-out example 3: paint")
    time.sleep(8)  # until the picture is drawn on the canvas, which nothing says
    box = visitor.page.locator("#edit-canvas canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visitor.page.mouse.move(x, y - 60)
    visitor.page.mouse.down()
    visitor.page.mouse.move(x, y + 60, steps=10)
    visitor.page.mouse.up()
    visitor.click("edit-begin")
    visitor.wait_for("edit-result", "Acceptance", 4 * SECONDS)
    assert "starflow edit inpaint" in visitor.page.locator("#edit-command").inner_text()


def test_the_training_is_read_anew(digits, home, visit):
    visitor = visit(digits)
    sizes = []

    def ticks(count):
        """The bytes of the next answers to the timer."""
        sizes.clear()
        while len(sizes) < count:
            visitor.page.wait_for_timeout(200)
        return sizes[:count]

    def keep(response):
        if response.url.endswith("/run/predict"):
            sizes.append(int(response.headers["content-length"]))

    visitor.page.on("response", keep)
    visitor.open("Training")
    visitor.wait_for("training-page", "There are no metrics yet")
    [first, *later] = [max(sizes), *ticks(2)]
    assert max(later) < 500 < first  # sent once
    visitor.open("Draw")
    (home / "digits" / "metrics.csv").write_text("step,loss\n1,2.5\n2,2.25\n")
    assert max(ticks(2)) < 500  # and not while another page is shown
    visitor.open("Training")
    visitor.page.locator("#training-page svg").first.wait_for()
    assert max(sizes) > first and max(ticks(2)) < 500


def test_compare_two_checkpoints(digits, visit):
    visitor = visit(digits)
    visitor.open("Compare")
    visitor.click("compare-begin")
    visitor.wait_for("compare-result", "Relative difference")
    assert visitor.page.locator("#compare-result section").count() == 2


def test_missing_pages_say_why(digits, visit):
    visitor = visit(digits)
    visitor.open("Continue")
    visitor.wait_for("continue-missing", "no frames to continue")


def together(address, count, values):
    """The answers to as many visitors at once: the status of each, its last message or None, and the seconds."""
    clients = [Client(address) for _ in range(count)]
    gate, begun = threading.Barrier(count), time.monotonic()

    def one(index):
        gate.wait()
        answer = clients[index].join("draw-begin", values(index))
        return answer, clients[index].last() if answer.status_code == 200 else None, time.monotonic() - begun

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_twenty_visitors_at_once(digits):
    answers = together(digits, 20, lambda index: ["all", 4, 0.0, "sequential", index])
    assert [answer.status_code for answer, _, _ in answers] == [200] * 20
    assert all(message["success"] for _, message, _ in answers), answers
    print("seconds until all were served:", max(seconds for _, _, seconds in answers))


def test_a_full_queue_says_so(home):
    with served(home / "digits", "--queue", "2") as address:
        answers = together(address, 20, lambda index: ["all", 64, 0.0, "sequential", index])
        refused = [answer for answer, message, _ in answers if message is None]
        assert 0 < len(refused) < 20
        assert {answer.status_code for answer in refused} == {503}
        assert all("full" in answer.text for answer in refused)
        assert all(message["success"] for _, message, _ in answers if message is not None)


def test_nothing_else_is_served(digits, home):
    client = Client(digits)
    served_files = [home / "digits" / "config.json", "/etc/passwd", home / "picture.png", Path.cwd() / "setup.cfg"]
    for path in served_files:
        for way in (
            f"gradio_api/file={path}",
            f"file={path}",
            f"gradio_api/file=/{path}",
            f"static/..%2f..%2f..%2f{path}",
            f"assets/%2e%2e/{path}",
        ):
            assert client.http.get(way).status_code in (403, 404), way
    for data in ({"path": "/etc/passwd"}, {"path": str(home / "digits" / "config.json")}):
        file = {**data, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
        assert client.join("score-begin", [file, None, "", 0, False]).status_code == 200
        message = client.last()
        assert not message["success"] and "root:" not in json.dumps(message)
    remote = {"path": "http://example.com/x.png", "meta": {"_type": "gradio.FileData"}}
    assert client.join("score-begin", [remote, None, "", 0, False]).status_code == 403
    assert httpx.get(digits, headers={"host": "evil.example"}, trust_env=False).status_code == 403
    refused = (
        ["11", 4, 0, "sequential", 0],
        ["all", 5, 0, "sequential", 0],
        ["all", 4, 0, "nonsense", 0],
        ["all", 4, -1, "sequential", 0],
        ["all", 4, 0, "sequential", -7],
        ["all", 4, 0, None, None],
    )
    for values in refused:
        assert client.join("draw-begin", values).status_code == 200
        message = client.last()
        assert not message["success"] and "program failed" not in json.dumps(message), values


def test_work_begins_in_the_queue_alone(digits):
    client = Client(digits)
    for name, data in (
        ("draw-begin", ["all", 4, 0.0, "sequential", 0]), ("edit-show", [None, 3]),
        ("score-begin", [None, 3, "", 0, False]),
    ):  # fmt: skip
        values = {"data": data, "fn_index": client.function(name), "session_hash": client.session}
        assert client.http.post("gradio_api/run/predict", json=values).status_code == 404, name
        assert client.http.post("gradio_api/run/predict", json={**values, "session_hash": None}).status_code == 404
    timer = next(one["id"] for one in client.config["dependencies"] if "tick" in json.dumps(one["targets"]))
    values = {"data": [None], "fn_index": timer, "session_hash": client.session}
    answer = client.http.post("gradio_api/run/predict", json=values)  # which needs no device
    assert answer.status_code == 200 and "Checkpoints" in answer.json()["data"][0]
