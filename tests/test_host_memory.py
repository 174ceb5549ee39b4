"""What is large is not held more than once, and not as a whole."""

from __future__ import annotations

import numpy as np

from starflow_jax.evaluation.samples.guidance_sweep import Captions
from starflow_jax.models.text.states import states_of


def counted(texts):
    """Captions whose text states hold their numbers, and the counts of captions that were encoded at a time."""
    calls = []

    def encode(some):
        calls.append(len(some))
        return np.asarray([float(text) for text in some], np.float32)[:, None, None]

    return Captions(tuple(texts), encode, np.zeros((1, 1, 1), np.float32)), calls


def test_text_states_of_many_captions_are_computed_as_they_are_needed():
    captions, calls = counted(map(str, range(30_000)))
    assert captions.states(0, 4)[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert captions.states(29_998, 4)[:, 0, 0].tolist() == [29_998, 29_999, 0, 1]  # in turn
    assert calls == [4, 4]


def test_text_states_of_few_captions_are_computed_once():
    captions, calls = counted("012")
    assert captions.states(0, 7)[:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert captions.states(100, 2)[:, 0, 0].tolist() == [1, 2]
    assert calls == [3]


def test_equal_captions_are_encoded_once():
    seen = []

    def encode(batch):
        seen.extend(batch[:, 0].tolist())
        return batch[:, :, None].astype(np.float32)

    ids = np.asarray([[3], [1], [3], [2], [1]], np.int32)
    states, known = states_of(encode, ids, batch_size=4)
    assert states[:, 0, 0].tolist() == [3, 1, 3, 2, 1] and len(known) == 3
    assert seen == [3, 1, 2, 3]  # the last row pads the batch
