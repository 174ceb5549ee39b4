"""The batches of a run are a function of its configuration: not of processes, threads, workers, or where it stopped."""

from __future__ import annotations

import dataclasses
import json

import grain
import numpy as np
import pytest

from starflow_jax.data import Component, Mixture, eval_batches, train_loader
from starflow_jax.data.decoding.bad_examples import BadExample, Skipped


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Examples that say which they are; those of `bad` cannot be read."""

    name: str
    first: int
    count: int
    shape: tuple[int, ...] = (2, 2, 1)
    bad: tuple[int, ...] = ()
    levels: int = 256
    num_classes: int = 1000

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.draw(index, np.random.default_rng(0))

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if index in self.bad:
            raise BadExample(f"{self.name}-{index}", "it is broken")
        image = rng.integers(256, size=self.shape).astype(np.uint8)
        return {"image": image, "label": np.int32(self.first + index)}


SMALL = Numbers("small", 0, 7)
MIXED = Mixture(
    "mixed",
    (
        Component(Numbers("still", 0, 11, (4, 4, 3), bad=(3, 4)), 3.0),
        Component(Numbers("wide", 100, 2, (2, 6, 3)), 1.0, batch_size=8),
        Component(Numbers("clip", 200, 5, (3, 4, 4, 3)), 1.0, batch_size=4),
    ),
)


def take(loader, count):
    try:
        return [next(loader) for _ in range(count)]
    finally:
        loader.close()


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def expected():
    return take(train_loader(MIXED, 12, seed=5), 14)


def test_one_source_is_read_in_the_order_of_its_shuffled_epochs():
    order = grain.MapDataset.range(7).shuffle(seed=9).repeat().batch(4, drop_remainder=True)
    found = [batch["label"] for batch in take(train_loader(SMALL, 4, seed=9), 10)]
    np.testing.assert_array_equal(found, [order[k] for k in range(10)])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_read_the_parts_of_the_same_batches(expected, count):
    parts = [take(train_loader(MIXED, 12, seed=5, process=(index, count)), 14) for index in range(count)]
    rows = zip(*parts, strict=True)
    joined = [{name: np.concatenate([part[name] for part in row]) for name in row[0]} for row in rows]
    assert_same(joined, expected)


def test_a_process_may_hold_parts_that_do_not_follow_one_another(expected):
    held = take(train_loader(MIXED, 12, seed=5, process=((0, 2), 4)), 6)
    for batch, whole in zip(held, expected[:6], strict=True):
        for name, rows in batch.items():
            quarters = np.split(whole[name], 4)
            np.testing.assert_array_equal(rows, np.concatenate([quarters[0], quarters[2]]))


@pytest.mark.parametrize("stop", [1, 6])
def test_threads_change_nothing_and_resume_what_none_began(expected, stop):
    loader = train_loader(MIXED, 12, seed=5)
    assert_same(take(loader, stop), expected[:stop])
    state = json.loads(json.dumps(loader.get_state()))
    assert state == {"next_index": stop}
    threaded = train_loader(MIXED, 12, seed=5, threads=3)
    threaded.set_state(state)
    assert_same(take(threaded, 14 - stop), expected[stop:])


def test_worker_processes_change_nothing_and_resume_what_others_began(expected):
    loader = train_loader(MIXED, 12, seed=5, workers=2)
    loader.set_state({"next_index": 3})
    assert_same(take(loader, 5), expected[3:8])
    assert loader.get_state() == {"next_index": 8}
    plain = train_loader(MIXED, 12, seed=5)
    plain.set_state({"next_index": 3})
    take(plain, 5)
    assert loader.skipped.reasons == plain.skipped.reasons != {}
    assert (loader.skipped.tried, loader.skipped.bad) == (plain.skipped.tried, plain.skipped.bad)


def test_a_loader_goes_on_after_it_was_closed(expected):
    loader = train_loader(MIXED, 12, seed=5, threads=2)
    assert_same(take(loader, 2) + take(loader, 3), expected[:5])


def test_every_batch_has_the_shape_that_was_foreseen(expected):
    loader = train_loader(MIXED, 12, seed=5)
    kinds = set()
    for batch in expected:
        peek = loader.peek()
        kinds.add(peek)
        assert peek.shapes == tuple((name, batch[name].shape, batch[name].dtype.name) for name in sorted(batch))
        next(loader)
    assert len(kinds) == 3  # as many programs as there are kinds of batches


def test_sources_take_turns_by_their_weights():
    many = dataclasses.replace(SMALL, count=60_000)  # of which one is found faster than of few
    loader = train_loader(Mixture("turns", (Component(many, 3.0), Component(many), Component(many, 0.0))), 2, seed=5)
    turns = np.bincount([loader.rows(ahead).component for ahead in range(400)])
    np.testing.assert_array_equal(turns, [300, 100])
    with pytest.raises(ValueError, match="a source of a weight above 0, got none"):
        train_loader(Mixture("none", (Component(SMALL, 0.0),)), 2, seed=0)


def test_every_good_example_of_an_epoch_is_read_once():
    source = Numbers("some", 0, 12, bad=(2, 7))
    loader = train_loader(source, 6, seed=1)
    labels = np.concatenate([batch["label"] for batch in take(loader, 2)])
    good = set(range(12)) - {2, 7}
    counts = np.bincount(labels, minlength=12)
    # two places of bad ones are filled with good ones
    assert set(labels) == good and counts.sum() == 12
    assert loader.skipped.reasons == {"some-2": "it is broken", "some-7": "it is broken"}
    assert loader.skipped.tried - loader.skipped.bad == 12


@pytest.mark.parametrize("threads", [0, 2])
def test_data_that_are_mostly_bad_end_with_a_sentence(threads):
    nothing = train_loader(Numbers("none", 0, 5, bad=tuple(range(5))), 2, seed=0, threads=threads)
    with pytest.raises(ValueError, match=r"100 of 100 examples in a row were bad, such as none-\d: it is broken$"):
        next(nothing)
    most = train_loader(Numbers("most", 0, 10, bad=tuple(range(8))), 2, seed=0, threads=threads)
    with pytest.raises(ValueError, match=r"data cannot be read: \d+ of \d+ examples in a row were bad"):
        take(most, 100)


@pytest.mark.parametrize("state", [{}, {"next_index": -1}, {"next_index": True}, {"next_index": "3"}, None])
def test_states_of_other_loaders_are_refused(state):
    with pytest.raises(ValueError, match=r"state must be \{'next_index': an integer >= 0\}"):
        train_loader(SMALL, 2, seed=0).set_state(state)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_counts_every_good_example_on_exactly_one_process(count):
    skipped = [Skipped() for _ in range(count)]
    parts = [list(eval_batches(MIXED, 4, process=(p, count), skipped=skipped[p])) for p in range(count)]
    assert len({len(part) for part in parts}) == 1
    assert {tuple(batch["image"].shape[1:]) for batch in parts[0]} == {(4, 4, 3), (2, 6, 3), (3, 4, 4, 3)}
    assert {len(batch["valid"]) for part in parts for batch in part} == {4 // count}
    found = sorted(label for part in parts for batch in part for label in batch["label"][batch["valid"]])
    assert found == [*sorted(set(range(11)) - {3, 4}), 100, 101, *range(200, 205)]
    assert {name for part in skipped for name in part.reasons} == {"still-3", "still-4"}


def test_mixtures_need_sources_of_one_kind_of_pixels():
    with pytest.raises(ValueError, match="at least one source, got none"):
        Mixture("empty", ())
    with pytest.raises(ValueError, match=r"the same number of levels, got \[17, 256\]"):
        Mixture("both", (Component(SMALL), Component(dataclasses.replace(SMALL, levels=17))))
