"""`starflow demo --video`: its samples, measures and report."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from starflow_jax.cli.dispatch import main
from starflow_jax.data.sources.moving_digits import CAPTIONS
from starflow_jax.demos import video_demo as video_demo
from starflow_jax.demos.digits_demo import demo_config
from starflow_jax.demos.drawings import SHOWN, Drawing, draw_all, write_drawing
from starflow_jax.media import read_video
from starflow_jax.sampling.sampling_report import SampleReport
from starflow_jax.sampling.videos.video_sampling import Videos
from starflow_jax.training import open_source

REPORT = SampleReport(3, 1, 3, 8, (8,), 1.0, 2.0, (), 0)


def drawing(name: str = "captions", **figures) -> Drawing:
    x = np.linspace(-1, 1, 3 * 2 * 4 * 4).reshape(3, 2, 4, 4, 1).astype(np.float32)
    pixels = np.rint((x + 1) * 127.5).astype(np.uint8)
    videos = Videos(pixels, x, x, ("a", "b", "c"), np.zeros((3, 1, 1)), 0, REPORT)
    return Drawing(name, pixels[[0, 2]], [0, 2], videos, figures)


def test_every_digit_is_asked_for_in_every_direction():
    assert len(CAPTIONS) == len(set(CAPTIONS)) == 40
    assert "an eight moving up" in CAPTIONS


def test_real_noisy_and_denoised_clips_stand_side_by_side(tmp_path):
    names = write_drawing(drawing(), tmp_path)
    assert sorted(names) == ["captions.gif", "captions.mp4"]
    frames = read_video(tmp_path / "captions.gif").frames
    assert frames.shape[0] == 2
    # Two clips side by side in each of three panels of 4 pixels, two gaps of 4, everything enlarged 4 times.
    assert frames.shape[1:3] == (4 * 4, (3 * 2 * 4 + 2 * 4) * 4)
    panel = frames[:, :, : 2 * 4 * 4]
    np.testing.assert_array_equal(panel, frames[:, :, (2 * 4 + 4) * 4 :][:, :, : 2 * 4 * 4])


def test_bars_are_those_of_clips_drawn_from_captions():
    good = drawing(agreement={"frame_share": 0.81, "direction_share": 0.8})
    assert [bar["passed"] for bar in video_demo.bars([drawing("longer"), good])] == [True, True]
    poor = drawing(agreement={"frame_share": 0.79, "direction_share": 0.9})
    assert [bar["passed"] for bar in video_demo.bars([poor])] == [False, True]


def test_the_tiny_twin_is_a_smaller_experiment_on_the_same_words():
    real, tiny = demo_config("moving_digits"), demo_config("moving_digits", tiny=True)
    assert real.text == tiny.text
    assert real.data.frames * 64 == 512  # tokens
    same = {"frames": real.data.frames, "clips": real.data.clips, "test_clips": real.data.test_clips}
    assert dataclasses.replace(tiny.data, **same) == real.data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    assert main(["demo", "--video", "--tiny", "--quiet", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_a_demo_from_end_to_end(finished, capsys):
    assert {path.name for path in finished.iterdir()} == {*video_demo.VIDEO_FILES, "run"}
    report = json.loads((finished / "report.json").read_text())
    assert [row["method"] for row in report["denoisers"]] == ["none", "score", "learned"]
    assert len(report["scores"]["frames"]) == 4
    assert report["drawings"]["captions"]["agreement"]["clips"] == 80
    assert report["drawings"]["captions"]["agreement_real"]["frame_share"] > 0.9
    assert len(report["drawings"]["longer"]["distance"]) == 12
    longer = read_video(finished / "longer.mp4")
    assert longer.frames.shape[0] == 12
    text = (finished / "report.md").read_text()
    assert all(f"]({kind}.gif)" in text for kind in video_demo.KINDS)
    # Called again, it shows the report and computes nothing.
    assert main(["demo", "--video", "--tiny", "--out", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert "finished; delete it to start again" in printed
    assert printed.endswith(f"\n  starflow studio --workdir {finished / 'run'}\n")


@pytest.mark.slow
def test_given_frames_stay_in_the_drawings(finished):
    from starflow_jax.training import load_run

    config, _, params, _ = load_run(finished / "run")
    source = open_source(config.data, "test", flow=config.flow)
    by_name = {d.name: d for d in draw_all(params, config, source, jax.random.key(0))}
    shown = min(SHOWN, len(source))
    for name, given in (("first_frame", 1), ("video_to_video", 2), ("longer", 3)):
        drawn = by_name[name]
        assert drawn.drawn.given_frames == given
        np.testing.assert_array_equal(drawn.drawn.videos[:, :given], drawn.real[:shown, :given])
    second_half = by_name["video_to_video"].real
    np.testing.assert_array_equal(second_half[:, 2:], 255 - second_half[:, :2])
