"""Digits, their split, dequantisation, and the batches made of them."""

import hashlib
import itertools
import json

import numpy as np
import pytest

from starflow_jax.data import ArraySource, bits_per_dim, eval_batches, quantise, train_loader
from starflow_jax.data.decoding.dequantise import dequantise
from starflow_jax.data.sources.digits import digits, every_fifth

# Results on digits are only comparable between versions of this package while these stay what they are.
TEST_INDICES_SHA256 = "895d13e3494f18903dbc2fc8876420ea8a77123ecaf0492b066542651977ae98"
CONTENT_SHA256 = "fe61bc84cd6a594d5ed1b937b7d8f8f791d4091d2a9df91fe5d6066156a4db6e"


def numbered_source(count):
    """A source whose labels are the examples' own numbers."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    return ArraySource("numbered", images, np.arange(count, dtype=np.int32), levels=256, num_classes=count)


def test_the_data_are_what_they_were():
    source = digits("all")
    assert source.images.shape == (1797, 8, 8, 1) and source.levels == 17 and source.num_classes == 10
    assert source.images.min() == 0 and source.images.max() == 16
    assert hashlib.sha256(source.images.tobytes() + source.labels.tobytes()).hexdigest() == CONTENT_SHA256


def test_the_split_is_what_it_was():
    _, test = every_fifth(digits("all"))
    assert hashlib.sha256(test.astype("<i4").tobytes()).hexdigest() == TEST_INDICES_SHA256


def test_the_split_covers_every_image_once_and_is_stratified():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1437, 360)
    whole = {image.tobytes() for image in digits("all").images}
    parts = [image.tobytes() for image in [*train.images, *test.images]]
    assert len(whole) == len(parts) == 1797 and set(parts) == whole
    shares = np.bincount(test.labels) / np.bincount(digits("all").labels)
    assert np.all(np.abs(shares - 0.2) < 0.005)


def test_the_split_does_not_depend_on_the_order_of_the_data():
    source = digits("all")
    shuffled = source.subset(np.random.default_rng(0).permutation(len(source)), "shuffled")
    images = {image.tobytes() for image in shuffled.images[every_fifth(shuffled)[1]]}
    assert images == {image.tobytes() for image in digits("test").images}


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be 'train', 'test' or 'all', got 'valid'"):
        digits("valid")


def test_enlarged_digits_are_the_same_pictures_on_a_finer_grid():
    small, large = digits("test"), digits("test", enlarge=3)
    assert large.images.shape == (360, 24, 24, 1) and large.images.dtype == np.uint8
    np.testing.assert_array_equal(large.labels, small.labels)
    # With three new pixels for an old one, the middle of each three lies on the old pixel.
    np.testing.assert_array_equal(large.images[:, 1::3, 1::3], small.images)
    with pytest.raises(ValueError, match="enlarge must be an integer >= 1, got 0"):
        digits("test", enlarge=0)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_quantise_undoes_dequantise(levels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, levels, 1000).astype(np.uint8)
    x = dequantise(images, rng.random(1000), levels)
    assert x.min() >= -1 and x.max() < 1
    np.testing.assert_array_equal(quantise(x, levels), images)
    assert quantise(np.array([-9.0, 9.0]), levels).tolist() == [0, levels - 1]


def test_dequantise_is_the_same_for_jax_arrays():
    import jax.numpy as jnp

    images, noise = digits("test").images[:4], np.float32(np.random.default_rng(0).random((4, 8, 8, 1)))
    x = dequantise(jnp.asarray(images), jnp.asarray(noise), 17)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, dequantise(images, noise, 17), atol=1e-6)
    np.testing.assert_array_equal(quantise(x, 17), images)


@pytest.mark.parametrize("levels", [17, 256])
def test_a_uniform_density_costs_the_logarithm_of_the_levels(levels):
    dims = 64
    log_prob = -dims * np.log(2.0)  # uniform on [-1, 1)
    assert bits_per_dim(log_prob, dims, levels) == pytest.approx(np.log2(levels))


def test_train_batches_have_stated_types():
    batch = next(train_loader(digits(), 5, seed=0))
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (5, 8, 8, 1)
    assert batch["label"].dtype == np.int32 and batch["label"].shape == (5,)


def test_each_epoch_is_another_permutation():
    loader = train_loader(numbered_source(10), 4, seed=1)
    labels = [next(loader)["label"] for _ in range(5)]
    first, second = np.concatenate(labels).reshape(2, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_loader_continues_exactly(threads, stop):
    def build():
        return train_loader(digits(), 64, seed=3, threads=threads)

    loader = build()
    for _ in range(stop):
        next(loader)
    state = json.dumps(loader.get_state())
    expected = [next(loader) for _ in range(30)]  # passes the end of the first epoch
    resumed = build()
    resumed.set_state(json.loads(state))
    for batch in expected:
        found = next(resumed)
        np.testing.assert_array_equal(batch["image"], found["image"])
        np.testing.assert_array_equal(batch["label"], found["label"])


def test_seeds_differ():
    first, second = (next(train_loader(digits(), 64, seed=seed))["label"] for seed in (0, 1))
    assert list(first) != list(second)


def test_processes_share_the_examples_out():
    source = numbered_source(10)
    parts = [next(train_loader(source, 10, seed=0, process=(index, 2)))["label"] for index in range(2)]
    assert sorted(np.concatenate(parts)) == list(range(10))


@pytest.mark.parametrize("batch_size", [1, 4, 10, 13])
def test_evaluation_sees_every_example_once(batch_size):
    batches = list(eval_batches(numbered_source(10), batch_size))
    assert {batch["image"].shape for batch in batches} == {(batch_size, 2, 3, 1)}
    assert {batch["label"].dtype.name for batch in batches} == {"int32"}
    assert {batch["valid"].dtype.name for batch in batches} == {"bool"}
    seen = itertools.chain.from_iterable(batch["label"][batch["valid"]] for batch in batches)
    assert list(seen) == list(range(10))
    images = np.concatenate([batch["image"][batch["valid"]] for batch in batches])
    np.testing.assert_array_equal(images, numbered_source(10).images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must be 0 to"),
        ({"process": (2, 2)}, r"process must be \(index, count\)"),
        ({"process": (0, 4)}, "batch_size must be a multiple of the 4 processes, got 2"),
        ({"threads": -1}, "threads and workers must not be negative"),
        ({"threads": 1, "workers": 1}, "threads or workers must be 0, got threads=1 and workers=1"),
    ],
)
def test_bad_loaders_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train_loader(numbered_source(10), **({"batch_size": 2, "seed": 0} | change))


def test_bad_evaluation_batch_is_refused_at_the_call():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        eval_batches(numbered_source(3), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 3, 3, 1))}, "images must be uint8"),
        ({"images": np.zeros((0, 3, 3, 1), np.uint8)}, "all above 0"),
        ({"images": np.full((2, 3, 3, 1), 4, np.uint8)}, r"below levels \(4\), got 4"),
        ({"labels": np.zeros(2)}, "labels must be int32"),
        ({"labels": np.zeros(3, np.int32)}, r"shape \[2\]"),
        ({"labels": np.array([0, 5], np.int32)}, "labels must be 0 to 4 .* got 0 to 5"),
        ({"levels": 1}, "levels must be 2 to 256, got 1"),
    ],
)
def test_bad_sources_are_refused(change, message):
    arguments = {
        "name": "bad",
        "images": np.zeros((2, 3, 3, 1), np.uint8),
        "labels": np.zeros(2, np.int32),
        "levels": 4,
        "num_classes": 5,
    }
    with pytest.raises(ValueError, match=message):
        ArraySource(**(arguments | change))
