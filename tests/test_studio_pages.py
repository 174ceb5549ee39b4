"""What the pages of the studio answer, without a server; slow, since importing Gradio takes long."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from random_flows import VIDEO
from studio_runs import pictures_run
from sweep_runs import TRAIN

from starflow_jax.core.config import DataConfig, ExperimentConfig
from starflow_jax.core.config.experiment_config import TextConfig
from starflow_jax.studio.background_work import Busy
from starflow_jax.studio.open_studio import Studio

pytestmark = pytest.mark.slow
gr = pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    home = tmp_path_factory.mktemp("pages")
    return Studio.of(pictures_run(home), home)


@pytest.fixture(scope="module")
def clicks(studio):
    """What a click on the button of each name calls."""
    from starflow_jax.studio.application import application

    with pytest.MonkeyPatch.context() as patch:
        # The folder of the run is read by the page of its training, and not while the pages are built.
        patch.setattr(type(studio.progress), "changed", lambda *_: pytest.fail("the folder was read"))
        app = application(studio, queue=1)
    names = {component._id: component.elem_id for component in app.blocks.values()}
    called = {}
    for function in app.fns.values():
        for target, _ in function.targets:
            if getattr(function.fn, "__name__", "") in ("answer", "show_it"):
                called[names[target]] = function.fn
    return called


def refusal(answer, *values):
    """The sentence of an answer that is refused."""
    with pytest.raises(gr.Error) as raised:
        list(answer(*values))
    return raised.value.message


def test_controls_without_a_value_are_asked_for(clicks):
    for values, sentence in (
        (("all", None, 0.0, "sequential", 0), "Choose a number of samples."),
        (("all", 4, None, "sequential", 0), "Choose a weight of guidance."),
        (("all", 4, 0.0, None, 0), "Choose a solver."),
        (("all", 4, 0.0, "sequential", None), "Enter a seed"),
    ):
        assert refusal(clicks["draw-begin"], *values).startswith(sentence)
    sides = (4, "sequential", 0.0, None, "sequential", 0.0)
    assert refusal(clicks["compare-begin"], "all", 4, None, 0, *sides) == "Choose two checkpoints."
    for values, sentence in (((None, 0, "any", "quick", 0), "frames"), ((0, 0, "any", None, 0), "chains")):
        paint = np.eye(4, dtype=np.uint8)
        assert f"{sentence}" in refusal(clicks["edit-begin"], None, 3, paint, *values)
    assert refusal(clicks["score-begin"], None, 3, None, None, False).startswith("Enter a seed")


def test_an_edit_needs_nothing_that_the_server_keeps(clicks, studio, monkeypatch):
    from starflow_jax.studio.pages import edit_page

    asked = []
    monkeypatch.setattr(edit_page, "fill_in", lambda model, pixels, missing, *_: asked.append((pixels, missing)) or ())
    assert not list(clicks["edit-begin"](None, 3, np.eye(4, dtype=np.uint8), 0, 0, "any", "quick", 0))
    [(pixels, missing)] = asked
    assert pixels.shape == (1, 4, 4, 1) and np.array_equal(missing[0], np.eye(4, dtype=bool))
    shown, _ = clicks["edit-show"](None, 3)
    assert np.array_equal(shown[:: shown.shape[0] // 4, :: shown.shape[1] // 4, 0], pixels[0, ..., 0])


def test_a_device_that_is_busy_is_not_a_missing_comparison(clicks, monkeypatch):
    from starflow_jax.studio.pages import score_page

    answers = []

    def pieces(work, device):
        answers.append(work)
        if len(answers) % 2:
            return iter([score_page.Outcome(SimpleNamespace(condition="", draws=4))])
        raise error

    monkeypatch.setattr(score_page, "in_background", pieces)
    monkeypatch.setattr(score_page, "score_html", lambda *_: "score")
    error = Busy("work that was stopped is still ending")
    assert refusal(clicks["score-begin"], None, 3, None, 0, True).startswith("Work that was stopped")
    error = ValueError("the data have gone <away>")
    [(_, verdict)] = clicks["score-begin"](None, 3, None, 0, True)
    assert "No comparison" in verdict and "&lt;away&gt;" in verdict


def test_clips_are_guided_without_a_caption_by_the_word_before_it_alone():
    from starflow_jax.studio.pages.controls import request_of

    data = DataConfig(source="moving_digits", frames=3, noise="gaussian", noise_std=0.3)

    def weight(caption, words=("two", "(extend)", "(v2v)"), **given):
        flow = dataclasses.replace(VIDEO, channels=1, text_dim=len(words))
        config = ExperimentConfig(name="clips", flow=flow, data=data, train=TRAIN, text=TextConfig(vocabulary=words))
        model = SimpleNamespace(config=config, classes=(), videos=True)
        values = {"num": 1, "guidance": 2.0, "solver": "sequential", "seed": 0, **given}
        return request_of(model, caption, **values).guidance

    assert [weight("two"), weight(""), weight("", image="x.png")] == [2.0, 0.0, 0.0]
    assert [weight("", continued="x.gif"), weight("", video="x.gif")] == [2.0, 2.0]
    assert [weight("", ("two",), continued="x.gif"), weight("two", ("two",), continued="x.gif")] == [0.0, 2.0]
    assert weight("", ("(extend)",), video="x.gif") == 0.0  # which is refused later
