"""Rewards of post-training: what they are of samples whose digits, motion or captions are known."""

import numpy as np
import pytest

from starflow_jax.data.sources.digits import digits
from starflow_jax.evaluation.rewards import digit_rewards
from starflow_jax.evaluation.rewards import reward as reward_module
from starflow_jax.evaluation.rewards.reward import RewardInputs, open_reward


def samples(pixels, wanted=None, captions=None):
    count = len(pixels)
    wanted = np.full(count, -1, np.int32) if wanted is None else np.asarray(wanted, np.int32)
    return RewardInputs(pixels, pixels / 127.5 - 1, wanted, tuple(captions or [""] * count))


def test_rewards_are_shares_of_frames_with_the_wanted_digit(monkeypatch):
    read = np.asarray([[7, 7, 7, 1], [2, 2, 2, 2]])
    monkeypatch.setattr(digit_rewards, "read_digits", lambda x: read[:, 0] if x.ndim == 4 else read)
    clips = np.zeros((2, 4, 16, 16, 1), np.uint8)
    named = samples(clips, captions=("a seven moving left", "a three moving up"))
    assert open_reward("digit")(named).tolist() == [0.75, 0.0]
    assert open_reward("digit")(samples(clips[:, 0], wanted=[7, 2])).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="needs samples of a class, captions that name one digit, or a target"):
        open_reward("digit")(samples(clips))


@pytest.mark.slow
def test_rewards_of_motion_follow_the_caption():
    clips = np.zeros((2, 8, 16, 16, 1), np.uint8)
    for frame in range(8):
        clips[0, frame, 4:10, frame : frame + 6] = 255  # moves right
        clips[1, frame, 4:10, 4:10] = 255  # does not move
    right = samples(clips, captions=["a two moving right"] * 2)
    left = samples(clips, captions=["a two moving left"] * 2)
    for name, obeyed, opposed, still in (
        ("direction", 1, 0, 0), ("direction-phase", 1, 0, 0), ("direction-cosine", 1, -1, -1),
    ):  # fmt: skip
        np.testing.assert_allclose(open_reward(name)(right), [obeyed, still], atol=1e-6)
        np.testing.assert_allclose(open_reward(name)(left), [opposed, still], atol=1e-6)


def test_a_network_of_pixels_and_captions_is_a_reward(monkeypatch):
    features = (np.asarray([[1.0, 0.0], [0.0, 2.0]]), np.asarray([[3.0, 4.0], [0.0, -1.0]]))
    monkeypatch.setattr(reward_module, "named_function", lambda name: (lambda pixels, captions: features, ""))
    found = open_reward("clip:module:function")(samples(np.zeros((2, 8, 8, 1), np.uint8)))
    np.testing.assert_allclose(found, [0.6, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digit", "digit-network"])
def test_classifiers_read_held_out_digits(name):
    real = digits("test")
    pixels = np.rint(real.images * (255 / 16)).astype(np.uint8)
    assert open_reward(name)(samples(pixels, wanted=real.labels)).mean() > 0.95
    assert open_reward(name)(samples(pixels, wanted=(real.labels + 1) % 10)).mean() < 0.03
