"""Sweeps over clips with captions: frames, conditions, and the numbers of `starflow score`."""

from pathlib import Path

import jax
import numpy as np
import pytest
from random_flows import random_flow
from sweep_runs import params_of, swept, write_run

from starflow_jax.core.config import load_config
from starflow_jax.core.config.sweep_config import SweepConfig, SweepData, SweepRun
from starflow_jax.evaluation.likelihood.video_scores import score_clips, source_clips
from starflow_jax.sweeps import read_examples, write_report
from starflow_jax.training import open_source

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "moving_digits.py"
CLIPS, DRAWS = 5, 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The tiny experiment on moving digits with random weights, its captions true, dropped and shuffled."""
    home = tmp_path_factory.mktemp("video")
    config = load_config(f"{EXPERIMENT}:tiny")
    params = params_of(random_flow(config.flow))
    run = write_run(home / "run", config.flow, config.data, {1: params}, text=config.text)
    sweep = SweepConfig(
        "video",
        (SweepRun(str(run)),),
        (SweepData("clips", count=CLIPS),),
        conditions=("true", "dropped", "shuffled"),
        draws=DRAWS,
        batch_size=4,
    )
    heard = swept(sweep, home / "sweep")
    return home, config, params, {row["condition"]: row for row in heard.rows.values()}


def test_clips_and_frames_are_those_of_score(found):
    home, config, params, rows = found
    source = open_source(config.data, "test", flow=config.flow, text=config.text)
    clips = source_clips(source, config, CLIPS)
    expected = score_clips(params, config, clips, jax.random.key(0), draws=DRAWS, batch_size=CLIPS)
    row = rows["true"]
    assert row["sigma"] == config.data.noise_std and row["noise"] == "gaussian" and not row["not_finite"]
    assert row["bits_per_dim"] == pytest.approx(np.mean([clip.bits_per_dim for clip in expected]), rel=1e-6)
    frames = np.stack([clip.frames for clip in expected])
    np.testing.assert_allclose(row["frame_bits"], frames.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(row["frame_errors"], frames.std(axis=0, ddof=1) / np.sqrt(CLIPS), rtol=1e-4)
    # Frames given those before them multiply to the clip.
    kept = read_examples(home / "sweep", row["cell"])
    np.testing.assert_allclose(kept["frames"].sum(axis=2), kept["log_prob"], rtol=1e-12)


def test_the_empty_caption_and_that_of_another_clip(found):
    """By hand: what the flow says of the same noisy clips with the empty caption, whose states are zeros of words."""
    home, config, params, rows = found
    kept = {name: read_examples(home / "sweep", row["cell"])["log_prob"] for name, row in rows.items()}
    assert np.all(kept["dropped"] != kept["true"]) and np.any(kept["shuffled"] != kept["true"])
    source = open_source(config.data, "test", flow=config.flow, text=config.text)
    clips = source_clips(source, config, CLIPS)
    empty = [type(clip)(clip.name, "", clip.pixels, clip.levels, np.zeros_like(clip.cond)) for clip in clips]
    expected = score_clips(params, config, empty, jax.random.key(0), draws=DRAWS, batch_size=CLIPS)
    mean = np.mean([clip.bits_per_dim for clip in expected])
    assert rows["dropped"]["bits_per_dim"] == pytest.approx(mean, rel=1e-6)


def test_the_report_draws_frames(found):
    home, *_ = found
    write_report(home / "sweep")
    assert (home / "sweep" / "plots" / "frames.png").is_file()
    assert "Frame by frame" in (home / "sweep" / "report.md").read_text()
