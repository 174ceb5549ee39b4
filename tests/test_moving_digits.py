"""Clips of moving digits: what is promised of every clip, whatever its number."""

import dataclasses

import numpy as np
import pytest

from starflow_jax.core.config import load_config
from starflow_jax.data import MovingDigits
from starflow_jax.data.sources.digits import digits
from starflow_jax.data.sources.moving_digits import DIRECTIONS, NAMES
from starflow_jax.training import open_source


def centroid(frame: np.ndarray) -> np.ndarray:
    ink = frame[..., 0].astype(float)
    return np.array([(ink.sum(1 - axis) * np.arange(ink.shape[axis])).sum() for axis in (0, 1)]) / ink.sum()


@pytest.fixture(scope="module")
def source() -> MovingDigits:
    return MovingDigits("train", clips=300, extend=0.2, inverted=0.2)


def test_a_clip_follows_from_its_number_and_the_seed_alone(source):
    again = MovingDigits("train", clips=300, extend=0.2, inverted=0.2)
    for index in (7, 3, 7):
        for name, value in source[index].items():
            np.testing.assert_array_equal(value, again[index][name])
    other = MovingDigits("train", clips=300, extend=0.2, inverted=0.2, seed=1)
    assert any((source[i]["image"] != other[i]["image"]).any() for i in range(5))


def test_the_caption_names_the_digit_and_where_it_goes(source):
    plain = [i for i in range(len(source)) if source.caption(i).startswith("a")]
    assert 150 < len(plain) < 210
    for index in plain:
        clip, (_, name, _, direction) = source[index], source.caption(index).split()
        assert NAMES[clip["label"]] == name
        moved = centroid(clip["image"][source.straight]) - centroid(clip["image"][0])
        np.testing.assert_allclose(moved, 2 * source.straight * np.array(DIRECTIONS[direction]), atol=1e-9)


def test_a_digit_is_a_real_one_and_stays_whole(source):
    real = {image.tobytes() for image in digits("train").images}
    for index in range(20):
        if source.caption(index).startswith("(v2v)"):
            continue
        for frame in source[index]["image"]:
            ink = {frame[r : r + 8, c : c + 8].tobytes() for r in range(9) for c in range(9)}
            assert ink & real
            assert frame.max() <= 16


def test_test_clips_show_test_digits():
    real = {image.tobytes() for image in digits("test").images}
    frame = MovingDigits("test", clips=3)[1]["image"][0]
    assert {frame[r : r + 8, c : c + 8].tobytes() for r in range(9) for c in range(9)} & real


def test_the_second_half_of_an_inverted_clip_inverts_the_first(source):
    index = next(i for i in range(300) if source.caption(i) == "(v2v) inverted")
    first, second = np.split(source[index]["image"], 2)
    np.testing.assert_array_equal(second, 16 - first)


def test_a_digit_that_meets_the_border_turns_back():
    source = MovingDigits("train", frames=16, speed=1, clips=40)
    turned = 0
    for index in range(40):
        places = np.array([centroid(frame) for frame in source[index]["image"]])
        steps = np.diff(places, axis=0)
        np.testing.assert_allclose(np.abs(steps).sum(1), 1.0, atol=1e-9)
        turned += (steps.sum(1) < 0).any() and (steps.sum(1) > 0).any()
    assert turned > 20


def test_a_longer_clip_shows_the_same_journey():
    source = MovingDigits("test", clips=3)
    longer = dataclasses.replace(source, frames=24, straight_frames=source.straight)
    for index in range(3):
        np.testing.assert_array_equal(longer[index]["image"][:8], source[index]["image"])


def test_two_digits_have_two_captions():
    clip = MovingDigits("train", digits=2, words=10, clips=5)
    assert clip.caption(0).count("moving") == 2 and " and " in clip.caption(0)
    assert np.count_nonzero(clip[0]["text"]) == 9


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"split": "all"}, "split must be one of 'train', 'test', got 'all'"),
        ({"canvas": 9}, "canvas must be an integer >= 10, got 9"),
        ({"speed": 5}, "speed must be at most 4 pixels for 2 straight steps on a canvas of 16"),
        ({"extend": 0.6, "inverted": 0.6}, "extend and inverted must sum to at most 1"),
        ({"words": 3}, "words must be an integer >= 5, got 3"),
    ],
)
def test_impossible_clips_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        MovingDigits(**({"split": "train"} | fields))


def test_the_experiment_opens_its_source():
    config = load_config("experiments/moving_digits.py:tiny")
    source = open_source(config.data, "train", flow=config.flow)
    assert source[0]["image"].shape == (4, 16, 16, 1)
    assert source.encoder.vocabulary == config.text.vocabulary
    held_out = open_source(config.data, "test", flow=config.flow)
    assert all(held_out.caption(i).startswith("a") for i in range(len(held_out)))
