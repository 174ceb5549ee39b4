"""Classifiers of generated clips, evaluated on real clips: their accuracy there limits what they can show."""

import numpy as np
import pytest

from starflow_jax.data import MovingDigits
from starflow_jax.data.sources.digits import digits
from starflow_jax.evaluation.video.caption_recognition import (
    caption_agreement,
    caption_meaning,
    crop_digit,
    ink_centroid,
    read_digits,
    read_directions,
)

CLIPS = MovingDigits("test", clips=120)
CAPTIONS = [CLIPS.caption(place) for place in range(len(CLIPS))]


@pytest.fixture(scope="module")
def real():
    """Held-out clips in [-1, 1]; the classifier knows none of their digits."""
    return np.stack([CLIPS[place]["image"] for place in range(len(CLIPS))]) / 8.0 - 1.0


def test_real_clips_show_what_their_captions_say(real):
    found = caption_agreement(real, CAPTIONS)
    assert found.frames == 120 * 8 and found.clips == 120
    assert found.frame_share > 0.95 and found.direction_share == 1.0
    assert f"{found.frames_right} of 960 frames" in str(found)
    assert found.to_dict()["frame_share"] == found.frames_right / 960


def test_noise_of_a_twentieth_of_the_range_hardly_matters(real):
    noisy = real + 0.1 * np.random.default_rng(0).normal(size=real.shape)
    found = caption_agreement(noisy, CAPTIONS)
    assert found.frame_share > 0.95 and found.direction_share > 0.98


def test_captions_of_other_clips_agree_by_chance_only(real):
    found = caption_agreement(real, CAPTIONS[1:] + CAPTIONS[:1])
    assert found.frame_share < 0.25 and found.direction_share < 0.45


def test_backwards_in_time_is_the_opposite_direction(real):
    """Over the frames in which the direction is certain."""
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    # A reading compares frames 0 and T // 4.
    backwards = np.concatenate([real[:, 2::-1], real[:, :5]], axis=1)
    assert read_directions(backwards) == [opposite[caption_meaning(c)[1]] for c in CAPTIONS]


@pytest.mark.parametrize("row, column", [(0, 0), (8, 8), (3, 5), (0, 8)])
def test_a_digit_is_cropped_alike_wherever_it_stands(row, column):
    canvas, middle = np.zeros((2, 50, 16, 16))
    images = digits("test").images[:50, ..., 0] / 16.0
    canvas[:, row : row + 8, column : column + 8] = images
    middle[:, 4:12, 4:12] = images
    np.testing.assert_array_equal(crop_digit(canvas), crop_digit(middle))


def test_centres_by_hand():
    ink = np.zeros((2, 8, 9))
    ink[0, 2, 3] = ink[0, 4, 3] = 0.5
    found = ink_centroid(ink)
    np.testing.assert_allclose(found[0], [3, 3])
    assert np.isnan(found[1]).all()


def test_what_stands_still_or_is_empty_goes_nowhere(real):
    still = np.repeat(real[:3, :1], 8, axis=1)
    assert read_directions(still) == ["none"] * 3
    empty = np.full_like(still, -1.0)
    assert read_directions(empty) == ["none"] * 3
    np.testing.assert_array_equal(read_digits(empty), -1)


@pytest.mark.parametrize("caption", ["moving left", "a seven", "a seven and a two moving left", "(v2v) inverted"])
def test_captions_that_say_too_little_or_too_much_are_refused(caption):
    with pytest.raises(ValueError, match="one digit and one direction"):
        caption_meaning(caption)


def test_bad_clips_are_refused(real):
    with pytest.raises(ValueError, match="captions must be one for each of 2 clips, got 1"):
        caption_agreement(real[:2], CAPTIONS[:1])
    with pytest.raises(ValueError, match="finite, got 256 values"):
        read_digits(np.where(np.arange(8)[:, None, None, None] == 2, np.nan, real[0]))
    with pytest.raises(ValueError, match="at least 8"):
        read_digits(real[0, :, :7])
