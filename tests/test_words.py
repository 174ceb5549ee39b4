"""Captions of a small vocabulary."""

import numpy as np
import pytest

from starflow_jax.models.text import WordEncoder

ENCODER = WordEncoder(("a", "seven", "moving", "left"), 5)


def test_a_caption_is_its_words_in_order_then_nothing():
    ids = ENCODER.ids(["a seven  moving left", "", "LEFT a"])
    np.testing.assert_array_equal(ids, [[1, 2, 3, 4, 0], [0] * 5, [4, 1, 0, 0, 0]])
    np.testing.assert_array_equal(ENCODER.ids(["a seven, moving!"]), ENCODER.known_ids(["a seven, moving!"]))


def test_states_are_one_hot_and_nothing_is_zeros():
    states = np.asarray(ENCODER.states(ENCODER.ids(["left a", ""])))
    assert states.shape == (2, 5, 4)
    np.testing.assert_array_equal(states[0, :2], [[0, 0, 0, 1], [1, 0, 0, 0]])
    assert states.sum() == 2


@pytest.mark.parametrize(
    "caption, sentence",
    [
        ("a sevn", "unknown word 'sevn'; did you mean seven"),
        ("a zebra", "unknown word 'zebra'; known words: a, seven"),
        ("a a a a a a", "at most 5 words, got 6"),
    ],
)
def test_what_cannot_be_said_is_one_sentence(caption, sentence):
    with pytest.raises(ValueError, match=sentence):
        ENCODER.ids([caption])


def test_one_caption_is_not_a_list_of_letters():
    with pytest.raises(ValueError, match="single string"):
        ENCODER.ids("left")
